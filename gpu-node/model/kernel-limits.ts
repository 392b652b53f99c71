/** What ONNX Runtime's GroupQueryAttention takes; checked when a checkpoint is opened, so that no step can fail of it. Pure. */

import type { DecoderSpec } from './decoder-spec.ts'

/** Multiples that the kernel wants: of a head's numbers, and of those that turn where some do. */
const HEAD_MULTIPLE = 8
const ROTARY_MULTIPLE = 16

/** Why the decoder can't run, in one line; `undefined` if it can. */
export function kernelObjection({ headSize, ropeTables }: DecoderSpec): string | undefined {
  if (ropeTables.length > 0 && headSize % ROTARY_MULTIPLE !== 0) {
    return `heads have ${headSize} numbers; the rotary attention kernel takes multiples of ${ROTARY_MULTIPLE}`
  }
  if (headSize % HEAD_MULTIPLE !== 0) {
    return `heads have ${headSize} numbers; the attention kernel takes multiples of ${HEAD_MULTIPLE}`
  }
  const odd = ropeTables.find(({ rotaryDim }) => rotaryDim % ROTARY_MULTIPLE !== 0)
  if (odd !== undefined) {
    const turning = `${odd.rotaryDim} of ${headSize} numbers of a head turn`
    return `${turning}; the rotary attention kernel takes multiples of ${ROTARY_MULTIPLE}`
  }
  return undefined
}
