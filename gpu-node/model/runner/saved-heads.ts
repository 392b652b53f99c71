/** Heads that adapters bring along (`modules_to_save`): logits of their rows, from the final hidden states. */

import { OrtBinding } from '../../ort/binding.ts'
import type { OrtEnvironment } from '../../ort/environment.ts'
import { OrtSession } from '../../ort/session.ts'
import { OrtTensor } from '../../ort/tensor.ts'
import type { DecoderSpec } from '../decoder-spec.ts'
import { GraphWriter, MICROSOFT } from '../graph/graph-writer.ts'
import type { SavedHead } from './loaded-adapter.ts'

export class SavedHeads {
  readonly #environment: OrtEnvironment
  readonly #decoder: DecoderSpec
  #session: OrtSession | undefined
  #binding: OrtBinding | undefined

  constructor(environment: OrtEnvironment, decoder: DecoderSpec) {
    this.#environment = environment
    this.#decoder = decoder
  }

  /** `hidden`: `[rows, hidden]`; writes `[rows, vocab]`. */
  run(head: SavedHead, rows: number, hidden: Float32Array, logits: Float32Array): void {
    const { hiddenSize, vocabSize } = this.#decoder
    this.#session ??= new OrtSession(this.#environment, { model: buildHead(hiddenSize, vocabSize) })
    this.#binding ??= new OrtBinding(this.#environment, this.#session)
    const input = new OrtTensor(this.#environment, 'float32', [rows, hiddenSize], hidden)
    const output = new OrtTensor(this.#environment, 'float32', [rows, vocabSize], logits)
    this.#binding.input('hidden', input)
    this.#binding.input('weight', head.weight)
    this.#binding.output('logits', output)
    this.#binding.run()
    input.dispose()
    output.dispose()
    this.#finish(head, logits.subarray(0, rows * vocabSize))
  }

  /** The base head's divisor and softcap hold for the adapter's head too. */
  #finish({ bias }: SavedHead, logits: Float32Array): void {
    const { vocabSize, head } = this.#decoder
    const factor = 1 / (head.divisor ?? 1)
    for (let i = 0; i < logits.length; i++) {
      const value = (logits[i]! + (bias === undefined ? 0 : bias[i % vocabSize]!)) * factor
      logits[i] = head.softcap === undefined ? value : head.softcap * Math.tanh(value / head.softcap)
    }
  }

  dispose(): void {
    this.#binding?.dispose()
    this.#session?.dispose()
  }
}

function buildHead(hiddenSize: number, vocabSize: number): Uint8Array {
  const graph = new GraphWriter()
  const hidden = graph.input('hidden', 'float32', ['rows', hiddenSize])
  const weight = graph.input('weight', 'float32', [vocabSize, hiddenSize])
  const logits = graph.node('FusedMatMul', [hidden, weight], { domain: MICROSOFT, attributes: { transB: 1 } })
  graph.output('logits', logits, 'float32', ['rows', vocabSize])
  return graph.toModel()
}
