/**
 * Masks as the engine thread sees them. It tells the matcher of each token and goes on; the mask comes back through the
 * sequence's MaskSlot, and a message only when the engine had found it pending.
 */

import type { MessagePort } from 'node:worker_threads'
import type { MaskSource, MaskState } from '../engine/mask-source.ts'
import { type MatcherNews, matcherOf, type SequenceMessage } from './grammar-messages.ts'
import { ENDED, LOST, MaskSlot, PENDING, READY, REJECTED } from './mask-slot.ts'

export interface MaskSourceOptions {
  /** Where the service tells of matchers (`MatcherNews`). */
  port: MessagePort
  /** Width of the logits. */
  width: number
}

interface MaskedSequence {
  matcherId: number
  slot: MaskSlot
}

const LOST_STATE: MaskState = {
  kind: 'failed',
  code: 'engine_failed',
  message: 'the thread that matched the grammar has ended',
}
const REJECTED_STATE: MaskState = {
  kind: 'failed',
  code: 'internal',
  message: 'a token does not fit the grammar',
}

/** `ThreadPart` entry of the engine. */
export function createMaskSource(options: MaskSourceOptions): MaskSource {
  return new GrammarMaskSource(options)
}

class GrammarMaskSource implements MaskSource {
  readonly #width: number
  readonly #matchers = new Map<number, MessagePort>()
  readonly #sequences = new Map<string, MaskedSequence>()
  /** Messages for matchers that are not announced yet: the announcement travels by another way than the sequence. */
  readonly #early = new Map<number, SequenceMessage[]>()
  readonly #gone = new Set<number>()
  #listener: () => void = () => undefined

  constructor({ port, width }: MaskSourceOptions) {
    this.#width = width
    port.on('message', (news: MatcherNews) => this.#onNews(news))
    port.unref()
  }

  onReady(listener: () => void): void {
    this.#listener = listener
  }

  begin(sequenceId: string, grammarId: string, replayTokens: Int32Array): void {
    const sequence: MaskedSequence = { matcherId: matcherOf(grammarId), slot: MaskSlot.create(this.#width) }
    this.#sequences.set(sequenceId, sequence)
    this.#post(sequence, { kind: 'begin', sequenceId, grammarId, replayTokens, slot: sequence.slot.words })
  }

  mask(sequenceId: string): MaskState {
    const sequence = this.#get(sequenceId)
    if (this.#gone.has(sequence.matcherId)) {
      return LOST_STATE
    }
    switch (sequence.slot.read()) {
      case PENDING:
        return { kind: 'pending' }
      case READY:
        return { kind: 'ready', mask: sequence.slot.mask }
      case ENDED:
        return { kind: 'ended' }
      case LOST:
        return LOST_STATE
      case REJECTED:
        return REJECTED_STATE
    }
  }

  accept(sequenceId: string, tokenId: number): void {
    const sequence = this.#get(sequenceId)
    sequence.slot.setPending()
    this.#post(sequence, { kind: 'accept', sequenceId, tokenId })
  }

  end(sequenceId: string): void {
    const sequence = this.#get(sequenceId)
    this.#sequences.delete(sequenceId)
    this.#post(sequence, { kind: 'end', sequenceId })
  }

  #post({ matcherId }: MaskedSequence, message: SequenceMessage): void {
    const port = this.#matchers.get(matcherId)
    if (port !== undefined) {
      port.postMessage(message)
    } else if (!this.#gone.has(matcherId)) {
      this.#early.set(matcherId, [...(this.#early.get(matcherId) ?? []), message])
    }
  }

  #onNews(news: MatcherNews): void {
    const early = this.#early.get(news.matcherId) ?? []
    this.#early.delete(news.matcherId)
    if (news.kind === 'gone') {
      this.#gone.add(news.matcherId)
      this.#matchers.get(news.matcherId)?.close()
      this.#matchers.delete(news.matcherId)
      this.#listener()
      return
    }
    news.port.on('message', () => this.#listener())
    news.port.unref()
    this.#matchers.set(news.matcherId, news.port)
    for (const message of early) {
      news.port.postMessage(message)
    }
  }

  #get(sequenceId: string): MaskedSequence {
    const sequence = this.#sequences.get(sequenceId)
    if (sequence === undefined) {
      throw new RangeError(`sequence ${sequenceId} has no grammar`)
    }
    return sequence
  }
}
