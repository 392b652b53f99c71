/**
 * Where adapters lie on the device. Each matrix has two banks with a row for every rank of every part: slot `s` owns rows
 * `s·parts·maxRank …`, an adapter of rank `r` uses the first `parts·r` of them. B's rows are zero outside their own part's
 * columns, so that one product serves all parts. Pure.
 */

import { isHead, type MatrixPlan, planMatrices, type WeightPlan } from '../graph/weight-plan.ts'

export interface BankSizes {
  slots: number
  /** Adapters of higher rank are refused. */
  maxRank: number
}

/** Matrices in the order of adapter images; the head is last. */
export function bankMatrices(plan: WeightPlan): MatrixPlan[] {
  return planMatrices(plan)
}

/** How many parts matrices of this base have, ascending: each count has its own row numbers. */
export function partCounts(plan: WeightPlan): number[] {
  return [...new Set(bankMatrices(plan).map(({ parts }) => parts.length))].sort((a, b) => a - b)
}

/** Rows of a matrix's banks. */
export function bankRows(parts: number, { slots, maxRank }: BankSizes): number {
  return slots * parts * maxRank
}

/** First row of a slot. */
export function slotRow(slot: number, parts: number, { maxRank }: BankSizes): number {
  return slot * parts * maxRank
}

/** Numbers in the banks of one slot, gains and shifts included. */
export function slotElements(plan: WeightPlan, { maxRank }: BankSizes): number {
  return bankMatrices(plan).reduce(
    (sum, { parts, inFeatures, outFeatures }) =>
      sum + parts.length * maxRank * (inFeatures + outFeatures) + 2 * outFeatures,
    0,
  )
}

/** Numbers in all banks: the slots, and the neutral gain and shift. */
export function bankElements(plan: WeightPlan, sizes: BankSizes): number {
  const neutral = bankMatrices(plan).reduce((sum, { outFeatures }) => sum + 2 * outFeatures, 0)
  return sizes.slots * slotElements(plan, sizes) + neutral
}

/** A rectangle of a slot's rows that an adapter fills. */
export interface ImageBlock {
  matrix: MatrixPlan
  kind: 'a' | 'b'
  /** A: of all parts; B: of one, whose rows are zero outside its columns. */
  part: number | undefined
  /** Its first row, of the slot's, and first column. */
  row: number
  column: number
  rows: number
  columns: number
  /** Numbers before it in the image. */
  offset: number
}

/** How an adapter's matrices lie one after another in its image: row by row, without B's zeros. */
export function imageBlocks(plan: WeightPlan, rank: number, head: boolean): ImageBlock[] {
  let offset = 0
  const next = (block: Omit<ImageBlock, 'offset'>): ImageBlock => {
    const placed = { ...block, offset }
    offset += block.rows * block.columns
    return placed
  }
  return bankMatrices(plan).flatMap((matrix) => {
    if (isHead(matrix) && !head) {
      return []
    }
    const { parts, inFeatures } = matrix
    const rows = parts.length * rank
    const a = next({ matrix, kind: 'a', part: undefined, row: 0, column: 0, rows, columns: inFeatures })
    let column = 0
    const b = parts.map(({ outFeatures }, part) => {
      const block = next({ matrix, kind: 'b', part, row: part * rank, column, rows: rank, columns: outFeatures })
      column += outFeatures
      return block
    })
    return [a, ...b]
  })
}

export function imageElements(plan: WeightPlan, rank: number, head: boolean): number {
  const last = imageBlocks(plan, rank, head).at(-1)
  return last === undefined ? 0 : last.offset + last.rows * last.columns
}
