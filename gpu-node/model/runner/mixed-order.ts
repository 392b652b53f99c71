/** In which order a mixed run takes its tokens: those whose logits are wanted come last, as `MixedRuns.run` returns them. */

import type { DecodeBatch, PrefillChunk } from '../../engine/engine-types.ts'

export interface StepToken {
  kvRow: number
  token: number
  position: number
  adapterSlot: number | undefined
}

/** Attention sees all tokens of a run in the cache, so a chunk's last token need not stand beside the others. */
export function orderMixed(
  decode: DecodeBatch,
  chunks: readonly PrefillChunk[],
): { tokens: StepToken[]; logits: number } {
  const read: StepToken[] = []
  const last: StepToken[] = []
  for (const { kvRow, tokens, startPosition, adapterSlot, logits } of chunks) {
    for (const [i, token] of tokens.entries()) {
      const isWanted = logits === 'last' && i === tokens.length - 1
      const list = isWanted ? last : read
      list.push({ kvRow, token, position: startPosition + i, adapterSlot })
    }
  }
  const decoding = Array.from(
    decode.tokens,
    (token, kvRow): StepToken => ({
      kvRow,
      token,
      position: decode.positions[kvRow]!,
      adapterSlot: decode.adapterSlots[kvRow],
    }),
  )
  return { tokens: [...read, ...decoding, ...last], logits: decoding.length + last.length }
}
