/**
 * Where the engine gets the masks of structured output. An implementation lives in gpu-node/grammar and is made inside the
 * engine thread; every call returns at once, so that a slow grammar holds up its own sequence alone.
 */

import type { ErrorCode } from '../../shared/errors.ts'

export type MaskState =
  /** Bit `t % 32` of word `t >> 5` is 1 when token `t` may come next. Valid until the sequence's next `accept`. */
  | { kind: 'ready'; mask: Int32Array }
  /** Not computed yet: the sequence is left out of this step. `onReady` tells when asking again may help. */
  | { kind: 'pending' }
  /** The grammar is complete and nothing may follow: the sequence finishes with `grammar_end`. */
  | { kind: 'ended' }
  /** Only this sequence fails. */
  | { kind: 'failed'; code: ErrorCode; message: string }

export interface MaskSource {
  /** `replayTokens` were generated (and delivered) before; they are accepted at once, and draw no mask. */
  begin(sequenceId: string, grammarId: string, replayTokens: Int32Array): void
  /** The mask for the next token; asked again each step until it is ready. */
  mask(sequenceId: string): MaskState
  /** The token that was sampled under the last mask; end-of-sequence tokens are not accepted but end the sequence. */
  accept(sequenceId: string, tokenId: number): void
  /** Always called once for each `begin`, whatever became of the sequence. */
  end(sequenceId: string): void
  /** Sets the one listener that is told when a pending mask may have become ready, from the engine thread's event loop. */
  onReady(listener: () => void): void
}
