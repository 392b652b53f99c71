/**
 * An adapter as one piece of memory, block by block as it goes into the banks, so that loading it is copying. Made off the
 * engine's thread from the plain matrices of the layout `graph`; its numbers are checked here, as a step mixes adapters in one
 * product.
 */

import { RingletError } from '../../../shared/errors.ts'
import { loraInputs } from '../graph/graph-names.ts'
import type { WeightPlan } from '../graph/weight-plan.ts'
import type { PackedAdapter } from '../packed-adapter.ts'
import { imageBlocks, imageElements } from './bank-layout.ts'
import { type DeviceFloats, FLOAT_BYTES } from './device-form.ts'
import { LARGEST, narrow } from './narrow.ts'

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
      overflows += narrow(values, halves, floats, at)
    }
  }
  for (const { matrix, kind, part, columns, offset } of imageBlocks(plan, rank, features.head)) {
    for (const index of part === undefined ? matrix.parts.keys() : [part]) {
      const name = loraInputs(matrix, index)[kind]
      const values = parts[name]
      if (values !== undefined) {
        put(values, offset + (part === undefined ? index * rank * columns : 0))
      }
      delete rest[name]
    }
  }
  if (overflows > 0 && floats !== 'float32') {
    throw new RingletError(
      'adapter_refused',
      `${overflows} numbers of the adapter are beyond ${LARGEST[floats]}, in which this node computes`,
    )
  }
  return { ...rest, [DEVICE_IMAGE]: image }
}
