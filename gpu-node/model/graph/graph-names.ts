/** Names of the graph's inputs and outputs. */

import type { MatrixPlan } from './weight-plan.ts'

/** `[rows, tokens, hidden]` float32. */
export const EMBEDDINGS = 'embeddings'
/** `[rows]` int32: a row's positions with those of this run, less one. */
export const LAST_POSITIONS = 'last_positions'
/** Scalar int32: the most positions of any row. */
export const TOTAL_POSITIONS = 'total_positions'
/** `[rows, tokens]` int64: rows of the rotary tables; only where a model has tables by sequence length. */
export const POSITION_IDS = 'position_ids'
/** `[n]` int64 into the flattened tokens: whose final hidden states are wanted. */
export const HIDDEN_ROWS = 'hidden_rows'
/** `[n, 1]` int64 into `hidden_rows`: whose logits are wanted. */
export const LOGIT_ROWS = 'logit_rows'
/** `[hidden_rows, hidden]`, after the last norm. */
export const HIDDEN = 'hidden'
/** `[logit_rows, 1, vocab]`. */
export const LOGITS = 'logits'

/** `[rows, kvHeads, maxPositions, headSize]`; past and present are bound to the same memory. */
export function kvNames(layer: number) {
  return {
    pastKey: `past.${layer}.key`,
    pastValue: `past.${layer}.value`,
    presentKey: `present.${layer}.key`,
    presentValue: `present.${layer}.value`,
  }
}

/**
 * int64, for our own kernels: how many tokens and the two sizes under which they come, then of each its row of the KV cache, its
 * position, and its row of the rotary tables. For the head: number and sizes of the logits' tokens alone.
 */
export const STEP_TOKENS = 'step.tokens'
export const HEAD_SIZES = 'head.sizes'

/** int64: header and adapters' tables of the step's tokens, as the LoRA kernel reads them; for the head, of the logits' rows. */
export const LORA_ROWS = 'lora.rows'
export const LORA_HEAD_ROWS = 'lora.head_rows'

/** An adapter's inputs for one part of a matrix: a `[rank, in]`, b `[rank, out]`; gain and shift `[out]` of the matrix. */
export function loraInputs(matrix: MatrixPlan, part: number) {
  return {
    a: `lora.${matrix.name}.${part}.a`,
    b: `lora.${matrix.name}.${part}.b`,
    gain: `lora.${matrix.name}.gain`,
    shift: `lora.${matrix.name}.shift`,
  }
}
