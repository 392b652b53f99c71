/**
 * An adapter as one piece of memory in the banks' layout, so that loading it is one copy. Made off the engine's thread from
 * the plain matrices of the layout `graph`; its numbers are checked here, as a step mixes adapters in one product.
 */

import { RingletError } from '../../../shared/errors.ts'
import { narrowToHalves } from '../../formats/to-float16.ts'
import { loraInputs } from '../graph/graph-names.ts'
import type { WeightPlan } from '../graph/weight-plan.ts'
import type { PackedAdapter } from '../packed-adapter.ts'
import { imageBlocks, imageElements } from './bank-layout.ts'
import { type DeviceFloats, FLOAT_BYTES } from './device-form.ts'

/** Key of `PackedAdapter.parts`: the image's bytes; halves two to a float, whatever number that would be. */
export const DEVICE_IMAGE = 'device.image'

/** The parts of a packed adapter with its matrices replaced by their image. */
export function packImage(
  plan: WeightPlan,
  { parts, rank, features }: Pick<PackedAdapter, 'parts' | 'rank' | 'features'>,
  floats: DeviceFloats,
): PackedAdapter['parts'] {
  const elements = imageElements(plan, rank, features.head)
  const image = new Float32Array(Math.ceil((elements * FLOAT_BYTES[floats]) / 4))
  const halves = new Uint16Array(image.buffer)
  const rest = { ...parts }
  let overflows = 0
  const put = (values: Float32Array, at: number): void => {
    if (floats === 'float32') {
      image.set(values, at)
    } else {
      overflows += narrowToHalves(values, halves, at)
    }
  }
  for (const { matrix, kind, columns, offset } of imageBlocks(plan, rank, features.head)) {
    let column = 0
    for (const [part, { inFeatures, outFeatures }] of matrix.parts.entries()) {
      const name = loraInputs(matrix, part)[kind]
      const values = parts[name]
      const width = kind === 'a' ? inFeatures : outFeatures
      const ranks = (values?.length ?? 0) / width
      for (let r = 0; r < ranks; r++) {
        const at = offset + (part * rank + r) * columns + (kind === 'a' ? 0 : column)
        put(values!.subarray(r * width, (r + 1) * width), at)
      }
      column += outFeatures
      delete rest[name]
    }
  }
  if (overflows > 0) {
    throw new RingletError(
      'adapter_refused',
      `${overflows} numbers of the adapter are beyond float16's 65504, in which this node computes`,
    )
  }
  return { ...rest, [DEVICE_IMAGE]: image }
}
