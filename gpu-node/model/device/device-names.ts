/** Names of the device graph's inputs beside those of graph-names.ts. Integers are int32 unless said otherwise. */

import type { MatrixPlan } from '../graph/weight-plan.ts'

/** `[rows, tokens]`: token ids. */
export const TOKENS = 'tokens'
/** `[rows, tokens]`: positions; only for models with position embeddings. */
export const POSITIONS = 'positions'
/** `[rows, tokens, hidden]`, in the graph's floats: what an adapter adds to embeddings. */
export const EMBEDDING_DELTA = 'embedding.delta'
/** `[rows, tokens, 1]`, in the graph's floats: 1 where the base's embedding counts, 0 where an adapter has its own table. */
export const EMBEDDING_KEEP = 'embedding.keep'
/** `[rows, tokens, 1]`: each token's adapter slot, or `BASE_SLOT`; for the head, of the logits' rows. */
export const SLOTS = 'lora.slots'
export const HEAD_SLOTS = 'lora.head_slots'
/** `[rows, tokens]`: row of the gain and shift banks; 0 is neutral. */
export const EXTRAS = 'lora.extras'
export const HEAD_EXTRAS = 'lora.head_extras'

/** `[R]`, for matrices of `parts` parts: rows of the banks that take part, and the slots that own them, or `NO_OWNER`. */
export function bankRowsName(parts: number): string {
  return `lora.rows.${parts}`
}
export function bankOwnersName(parts: number): string {
  return `lora.owners.${parts}`
}

/** Banks of a matrix: A `[rows, in]`, B `[rows, out]`; gain and shift `[slots + 1, out]`. */
export function bankNames({ name }: MatrixPlan) {
  return { a: `bank.${name}.a`, b: `bank.${name}.b`, gain: `bank.${name}.gain`, shift: `bank.${name}.shift` }
}

/** Tables that the device looks up itself. */
export const EMBEDDING_TABLE = 'embedding.weight'
export const POSITION_TABLE = 'embedding.positions'
