/**
 * Callers' texts to token ids. A run of one letter, of spaces or of Chinese takes the tokenizer up to 20 µs a character, and
 * the HTTP thread is every stream's: what may take it long goes to a thread of its own, tenants in turn.
 */

import { RingletError } from '../../shared/errors.ts'
import { FairPool } from '../adapters/store/fair-pool.ts'
import { WaitingPlaces } from '../waiting-places.ts'
import type { ThreadEncoder } from './thread-encoder.ts'
import type { Tokenizer } from './tokenizer.ts'

export interface TextEncoderLimits {
  /** Characters that are encoded on the calling thread; the worst take 125 ms, usual text 4 ms. */
  charactersAtOnce: number
  /** The same for all texts of a request together. */
  charactersOfRequest: number
  /** Long texts in hand at once, tenants sharing; one more is `queue_full`. */
  maxInHand: number
}

export const DEFAULT_TEXT_LIMITS: TextEncoderLimits = {
  charactersAtOnce: 8_192,
  charactersOfRequest: 65_536,
  maxInHand: 64,
}

export interface TextCaller {
  tenantId: string
  /** Aborted when the caller left. */
  signal: AbortSignal
}

/** Rejects with `queue_full`, or with the signal's reason. */
export type EncodeText = (text: string, addSpecialTokens: boolean) => Promise<number[]>

type Thread = Pick<ThreadEncoder, 'encode' | 'close'>

export class CallerTextEncoder {
  readonly #tokenizer: Pick<Tokenizer, 'encode'>
  readonly #thread: Thread
  readonly #limits: TextEncoderLimits
  readonly #turns = new FairPool({ jobs: 1, jobsPerTenant: 1 })
  readonly #places: WaitingPlaces

  constructor(tokenizer: Pick<Tokenizer, 'encode'>, thread: Thread, limits: Partial<TextEncoderLimits> = {}) {
    this.#tokenizer = tokenizer
    this.#thread = thread
    this.#limits = { ...DEFAULT_TEXT_LIMITS, ...limits }
    this.#places = new WaitingPlaces(this.#limits.maxInHand)
  }

  /** For the texts of one request. */
  forRequest(caller: TextCaller): EncodeText {
    const { charactersAtOnce, charactersOfRequest } = this.#limits
    let characters = 0
    return async (text, addSpecialTokens) => {
      caller.signal.throwIfAborted()
      characters += text.length
      return text.length <= charactersAtOnce && characters <= charactersOfRequest
        ? this.#tokenizer.encode(text, addSpecialTokens)
        : this.#inThread(text, addSpecialTokens, caller)
    }
  }

  /** Long texts in hand. */
  get inHand(): number {
    return this.#places.taken
  }

  async close(): Promise<void> {
    await this.#thread.close()
  }

  /** A caller who leaves gives the place back; a text that the thread has begun is encoded to its end. */
  #inThread(text: string, addSpecialTokens: boolean, { tenantId, signal }: TextCaller): Promise<number[]> {
    if (!this.#places.take(tenantId)) {
      throw new RingletError('queue_full', 'too many long texts are being tokenized', { retryAfterSeconds: 1 })
    }
    const done = new AbortController()
    const encoded = new Promise<number[]>((resolve, reject) => {
      const encode = () => this.#thread.encode(text, addSpecialTokens).then(resolve, reject)
      const place = this.#turns.enqueue(tenantId, encode)
      const leave = (): void => {
        place.cancel()
        reject(signal.reason)
      }
      signal.addEventListener('abort', leave, { once: true, signal: done.signal })
    })
    return encoded.finally(() => {
      done.abort()
      this.#places.giveBack(tenantId)
    })
  }
}
