/** Which scores count: those of positions that a token sees, of the blocks of sixteen that are scored. */

import { at, type Memory, REG } from '../machine-code/assembler.ts'
import type { VectorAssembler } from '../machine-code/vector-assembler.ts'
import { type AttentionShape, attentionFrame, BLOCK_BYTES, BLOCK_POSITIONS, SCORE_BYTES } from './attention-layout.ts'
import { vectorOffsets } from './attention-registers.ts'

const TABLE = 'masks'
const TABLE_BYTES = 3 * BLOCK_BYTES
/** Added to a score it leaves nothing of it in a softmax. */
const REMOVED = -1e30

const { rax, rbx, rcx, rdx, rsp, rdi } = REG

/**
 * Two tables, each of three blocks, read from the middle on so that masks of a block's either end come out: what is added to a score,
 * nothing or a number that removes it; and the bits of it that are kept before, all or none.
 */
export function writeMaskTable(code: VectorAssembler): void {
  code.align(16)
  code.label(TABLE)
  const isRemoved = (i: number): boolean => i >= BLOCK_POSITIONS && i < 2 * BLOCK_POSITIONS
  for (let i = 0; i < 3 * BLOCK_POSITIONS; i++) {
    code.float(isRemoved(i) ? REMOVED : 0)
  }
  for (let i = 0; i < 3 * BLOCK_POSITIONS; i++) {
    code.word(isRemoved(i) ? 0 : 0xffffffff)
  }
}

/** A score that was removed, in all lanes. */
export function writeRemoved(code: VectorAssembler, to: number): void {
  code.addressOfLabel(rax, TABLE)
  code.loadVector(to, at(rax, BLOCK_BYTES))
}

/**
 * Removes scores behind the last position, and before the first. rbx: positions of these blocks, rdi: blocks; held: registers with
 * the positions at which the blocks and the seen ones start. Changes rax, rcx, rdx.
 */
export function writeMasks(code: VectorAssembler, shape: AttentionShape, held: { block: number; start: number }): void {
  const frame = attentionFrame(shape)
  code.addressOfLabel(rax, TABLE)
  // rcx: lanes of the last block that are too many
  code.move(rcx, rdi)
  code.shiftLeft(rcx, Math.log2(BLOCK_POSITIONS))
  code.subtract(rcx, rbx)
  code.move(rdx, rdi)
  code.subtractConstant(rdx, 1)
  code.shiftLeft(rdx, Math.log2(BLOCK_BYTES))
  writeMask(code, shape, 0, (offset) => ({ base: rsp, offset: frame.scores + offset, index: rdx, scale: 1 }))
  code.compare(held.block, held.start)
  code.jumpIfNotBelow('masks end')
  code.move(rcx, held.block)
  code.subtract(rcx, held.start)
  // rcx = -(lanes of the first block that are too many)
  writeMask(code, shape, 2 * BLOCK_BYTES, (offset) => at(rsp, frame.scores + offset))
  code.label('masks end')
}

/**
 * Over a block's scores: kept, or replaced by one that removes them, whatever they were: behind a row's end lie keys of a sequence
 * that had it before, which may be NaN. rax: the tables, from `start` on; rcx: lanes before or after it.
 */
function writeMask(
  code: VectorAssembler,
  { group }: AttentionShape,
  start: number,
  place: (offset: number) => Memory,
): void {
  const [removed, kept, score] = [0, 1, 2] as const
  const table = (offset: number): Memory => ({ base: rax, offset: start + offset, index: rcx, scale: 4 })
  for (const offset of vectorOffsets(code)) {
    code.loadVector(removed, table(offset))
    code.loadVector(kept, table(TABLE_BYTES + offset))
    for (let head = 0; head < group; head++) {
      const scores = place(head * SCORE_BYTES + offset)
      code.andVector(score, kept, scores)
      code.addVector(score, score, removed)
      code.storeVector(scores, score)
    }
  }
}
