/** Which layers of Qwen 2 and 3 have a sliding window: `layer_types`, or those from `max_window_layers` on. */

import { type ConfigFields, invalid } from '../config-fields.ts'
import { readLayerTypes } from './family.ts'

/** One entry a layer: the window, or `undefined` for all positions. */
export function readQwenWindows(config: ConfigFields, layers: number): (number | undefined)[] {
  const window = config.optionalSize('sliding_window')
  const used = config.flag('use_sliding_window') ? window : undefined
  // 0: every layer.
  const firstSliding = config.optionalNumber('max_window_layers') ?? layers
  const types = readLayerTypes(config, layers, (layer) =>
    used !== undefined && layer >= firstSliding ? 'sliding' : 'full',
  )
  if (used === undefined && types.includes('sliding')) {
    throw invalid('layer_types', 'sliding_attention', 'full_attention while use_sliding_window is false')
  }
  return types.map((type) => (type === 'sliding' ? used : undefined))
}
