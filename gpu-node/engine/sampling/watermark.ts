/**
 * The soft watermark of Kirchenbauer et al., "A Watermark for Large Language Models" (ICML 2023), with LoRAX's and TGI's
 * constants: the previous token seeds a permutation of the vocabulary, and its first half is favoured by 2.0.
 * The permutation is PyTorch's `torch.randperm` of a CPU generator, so that detectors built on it recognise the text.
 */

const HASH_KEY = 15485863
const GREEN_FRACTION = 0.5
const GREEN_BIAS = 2

/** Adds the bias to `scores` in place. */
export function addWatermark(scores: Float32Array, previousToken: number): void {
  const green = greenTokens(scores.length, previousToken)
  for (const token of green) {
    scores[token] = (scores[token] as number) + GREEN_BIAS
  }
}

/** The favoured token ids after `previousToken`, in the permutation's order. */
export function greenTokens(vocabSize: number, previousToken: number): Int32Array {
  const nextWord = mersenneTwister(Math.imul(HASH_KEY, previousToken) >>> 0)
  return permutationHead(vocabSize, Math.floor(vocabSize * GREEN_FRACTION), nextWord)
}

/** The first `count` items of torch.randperm(n): a Fisher–Yates shuffle from the front. */
export function permutationHead(n: number, count: number, nextWord: () => number): Int32Array {
  const permutation = Int32Array.from({ length: n }, (_, i) => i)
  for (let i = 0; i < Math.min(count, n - 1); i++) {
    const j = i + (nextWord() % (n - i))
    const moved = permutation[i] as number
    permutation[i] = permutation[j] as number
    permutation[j] = moved
  }
  return permutation.subarray(0, count)
}

const STATE_WORDS = 624
const SHIFT_WORDS = 397

/** MT19937 (Matsumoto and Nishimura 1998), seeded by its `init_genrand`; 32-bit words. */
export function mersenneTwister(seed: number): () => number {
  const state = new Uint32Array(STATE_WORDS)
  state[0] = seed
  for (let i = 1; i < STATE_WORDS; i++) {
    const previous = state[i - 1] as number
    state[i] = Math.imul(1812433253, previous ^ (previous >>> 30)) + i
  }
  let next = STATE_WORDS
  return () => {
    if (next === STATE_WORDS) {
      regenerate(state)
      next = 0
    }
    let word = state[next++] as number
    word ^= word >>> 11
    word ^= (word << 7) & 0x9d2c5680
    word ^= (word << 15) & 0xefc60000
    return (word ^ (word >>> 18)) >>> 0
  }
}

function regenerate(state: Uint32Array): void {
  for (let i = 0; i < STATE_WORDS; i++) {
    const upper = (state[i] as number) & 0x80000000
    const joined = upper | ((state[(i + 1) % STATE_WORDS] as number) & 0x7fffffff)
    const twisted = (joined >>> 1) ^ (joined & 1 ? 0x9908b0df : 0)
    state[i] = (state[(i + SHIFT_WORDS) % STATE_WORDS] as number) ^ twisted
  }
}
