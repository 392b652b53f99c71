/** The demo tokenizer, a grammar service over it, and a model that knows nothing: it picks any token that the mask allows. */

import type { MaskSource } from '../../../gpu-node/engine/mask-source.ts'
import { createMaskSource, type MaskSourceOptions } from '../../../gpu-node/grammar/grammar-mask-source.ts'
import { type GrammarLimits, GrammarService } from '../../../gpu-node/grammar/grammar-service.ts'
import type { GrammarSpec } from '../../../gpu-node/grammar/grammar-spec.ts'
import { grammarVocabulary } from '../../../gpu-node/grammar/grammar-vocabulary.ts'
import { createTokenizer, type Tokenizer } from '../../../gpu-node/text/tokenizer.ts'
import { readTokenizerFiles } from '../../../gpu-node/text/tokenizer-files.ts'

export const EOS = 1
/** Wider than the tokenizer's 1,024: logits often are. */
export const WIDTH = 1040

export interface Harness {
  service: GrammarService
  masks: MaskSource
  tokenizer: Tokenizer
  /** Samples until the grammar ends, or undefined after `maxTokens`. `closing` in [0, 1]: how often an ending is preferred. */
  sample(spec: GrammarSpec, random: () => number, options?: SampleOptions): Promise<string | undefined>
  /** Waits for the mask; `undefined`: ended. */
  nextMask(sequenceId: string): Promise<Int32Array | undefined>
  close(): Promise<void>
}

export interface SampleOptions {
  maxTokens?: number
  closing?: number
}

export async function createHarness(limits: Partial<GrammarLimits> = {}, markers: string[] = []): Promise<Harness> {
  const tokenizer = createTokenizer(await readTokenizerFiles('models/demo/base'), [EOS])
  const service = new GrammarService(grammarVocabulary(tokenizer, WIDTH, [EOS], markers), limits)
  // Made by `maskSource` for exactly this module.
  const masks = createMaskSource(service.maskSource().options as MaskSourceOptions)
  const waiting = new Set<() => void>()
  masks.onReady(() => {
    for (const wake of waiting) {
      wake()
    }
    waiting.clear()
  })
  let serial = 0

  const nextMask = async (sequenceId: string): Promise<Int32Array | undefined> => {
    for (;;) {
      const woken = new Promise<void>((resolve) => waiting.add(resolve))
      const state = masks.mask(sequenceId)
      switch (state.kind) {
        case 'ready':
          return state.mask
        case 'ended':
          return undefined
        case 'failed':
          throw new Error(state.message)
        case 'pending':
          await woken
      }
    }
  }

  return {
    service,
    masks,
    tokenizer,
    nextMask,
    sample: async (spec, random, { maxTokens = 400, closing = 0.3 } = {}) => {
      const lease = await service.acquire(spec)
      serial += 1
      const sequenceId = `s${serial}`
      masks.begin(sequenceId, lease.grammarId, new Int32Array(0))
      try {
        const tokens: number[] = []
        while (tokens.length < maxTokens) {
          const mask = await nextMask(sequenceId)
          if (mask === undefined) {
            return tokenizer.decode(tokens, true)
          }
          const allowed = allowedTokens(mask)
          const ending = allowed.filter((id) => id === EOS || /["}\]]/.test(tokenizer.rawToken(id) ?? ''))
          const from = ending.length > 0 && random() < closing ? ending : allowed
          const token = from[Math.floor(random() * from.length)]
          if (token === undefined) {
            throw new Error(`no token is allowed after ${JSON.stringify(tokenizer.decode(tokens, true))}`)
          }
          if (token === EOS) {
            return tokenizer.decode(tokens, true)
          }
          tokens.push(token)
          masks.accept(sequenceId, token)
        }
        return undefined
      } finally {
        masks.end(sequenceId)
        lease.release()
      }
    },
    close: () => service.close(),
  }
}

export function allowedTokens(mask: Int32Array): number[] {
  const allowed: number[] = []
  for (let id = 0; id < WIDTH; id++) {
    if ((((mask[id >> 5] ?? 0) >>> (id & 31)) & 1) === 1) {
      allowed.push(id)
    }
  }
  return allowed
}

/** Mulberry32. */
export function seededRandom(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}
