/**
 * A MaskSource with simple grammars, slow on demand: a sequence alternates between even and odd tokens, and its grammar ends
 * after `length` tokens. A mask becomes ready when the test says so.
 */

import type { MaskSource, MaskState } from '../../gpu-node/engine/mask-source.ts'

export class CountingMasks implements MaskSource {
  readonly began: string[] = []
  readonly ended: string[] = []
  /** Masks are computed at once unless their sequence is named here. */
  readonly slow = new Set<string>()
  readonly #accepted = new Map<string, number>()
  readonly #vocabSize: number
  readonly #length: number
  #listener: () => void = () => undefined

  constructor(vocabSize: number, length: number) {
    this.#vocabSize = vocabSize
    this.#length = length
  }

  begin(sequenceId: string, _grammarId: string, replayTokens: Int32Array): void {
    this.began.push(sequenceId)
    this.#accepted.set(sequenceId, replayTokens.length)
  }

  mask(sequenceId: string): MaskState {
    const accepted = this.#accepted.get(sequenceId)
    if (accepted === undefined) {
      return { kind: 'failed', code: 'internal', message: 'never begun' }
    }
    if (this.slow.has(sequenceId)) {
      return { kind: 'pending' }
    }
    return accepted >= this.#length
      ? { kind: 'ended' }
      : { kind: 'ready', mask: alternating(this.#vocabSize, accepted % 2) }
  }

  accept(sequenceId: string): void {
    this.#accepted.set(sequenceId, (this.#accepted.get(sequenceId) ?? 0) + 1)
  }

  end(sequenceId: string): void {
    this.ended.push(sequenceId)
    this.#accepted.delete(sequenceId)
  }

  onReady(listener: () => void): void {
    this.#listener = listener
  }

  /** The masks of this sequence are computed from now on. */
  hurry(sequenceId: string): void {
    this.slow.delete(sequenceId)
    this.#listener()
  }
}

function alternating(vocabSize: number, parity: number): Int32Array {
  return new Int32Array(Math.ceil(vocabSize / 32)).fill(parity === 0 ? 0x55555555 : 0xaaaaaaaa)
}
