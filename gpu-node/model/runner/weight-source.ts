/** What is needed of a checkpoint to build a model from it. */

import type { DecoderSpec } from '../decoder-spec.ts'
import type { StoredNumbers } from '../weight-files.ts'

export interface WeightSource {
  readonly decoder: DecoderSpec
  readTensor(name: string): Promise<Float32Array>
  /** `out.length` numbers of a tensor from element `first` on; sources without it are read a tensor at a time. */
  readPart?(name: string, first: number, out: Float32Array): Promise<Float32Array>
  /** The tensor as stored, if that is bfloat16. */
  readBfloat16?(name: string): Promise<Uint16Array | undefined>
  /** Where the tensor's numbers lie in an open file, for other threads to read. */
  stored?(name: string): StoredNumbers
}
