/** What bounds the engine, and what it is set to unless the operator says otherwise; how the values were found: docs/scheduling.md. */

export interface EngineLimits {
  /** Waiting sequences, over all tenants; one more is refused with `queue_full`. */
  maxWaiting: number
  /** Most prompt tokens in one step. */
  prefillChunk: number
  /** Prompt tokens that a step takes beside running streams, whatever their cost. */
  smallestChunk: number
  /** A chunk beside running streams is sized to take this many times the time of their decode. */
  stallRatio: number
  /** Prompts that are being run in turns. */
  maxPrefilling: number
  /** Bytes of saved KV prefixes; 0 turns reuse off. */
  prefixCacheBytes: number
  /** Prefixes are kept in multiples of this many tokens. */
  prefixBlock: number
  /** A sequence whose adapter finds no slot is passed over by others for at most this long; then a slot is kept for it. */
  maxPassedOverMs: number
  /** Most tokens that are guessed ahead for a sequence that runs alone (prompt-lookup.ts); 0 turns guessing off. */
  maxGuesses: number
  /** A tenant below its share of rows waits at most this long before another gives one up. */
  preemptAfterMs: number
}

export const DEFAULT_LIMITS: EngineLimits = {
  maxWaiting: 512,
  prefillChunk: 128,
  smallestChunk: 4,
  stallRatio: 0.5,
  maxPrefilling: 4,
  prefixCacheBytes: 256 * 2 ** 20,
  prefixBlock: 16,
  maxPassedOverMs: 2_000,
  maxGuesses: 7,
  preemptAfterMs: 250,
}
