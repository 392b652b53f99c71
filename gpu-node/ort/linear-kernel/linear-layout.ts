/**
 * How the int8 product wants a matrix in memory, and bringing it there. Pure.
 *
 * Tiles of sixteen outputs, each front to back: for each block of 32 inputs eight groups `[16 outputs][4 inputs]` of codes around
 * 128, then the block's sixteen float32 scales. So every weight is read once, in order, beside its scale.
 */

import { QUANTISED_BLOCK } from '../../model/quantise.ts'

export const TILE_OUTPUTS = 16
/** Inputs that one instruction multiplies. */
export const GROUP_INPUTS = 4
export const CODE_BYTES = TILE_OUTPUTS * QUANTISED_BLOCK
/** Of a block of a tile. */
export const TILE_BLOCK_BYTES = CODE_BYTES + TILE_OUTPUTS * 4

export function fitsLinearKernel(inFeatures: number, outFeatures: number): boolean {
  return inFeatures % QUANTISED_BLOCK === 0 && outFeatures % TILE_OUTPUTS === 0
}

export function tiledBytes(inFeatures: number, outFeatures: number): number {
  return (outFeatures / TILE_OUTPUTS) * (inFeatures / QUANTISED_BLOCK) * TILE_BLOCK_BYTES
}

/** From MatMulNBits' layout: `weight` `[out, blocks, 32]`, `scales` `[out, blocks]`. */
export function tileMatrix(
  inFeatures: number,
  outFeatures: number,
  weight: Uint8Array,
  scales: Float32Array,
): Uint8Array {
  const blocks = inFeatures / QUANTISED_BLOCK
  const tiled = new Uint8Array(new SharedArrayBuffer(tiledBytes(inFeatures, outFeatures)))
  const codes = new Uint32Array(tiled.buffer)
  const floats = new Float32Array(tiled.buffer)
  // Four codes at once: a group of inputs stays together.
  const source = new Uint32Array(weight.buffer, weight.byteOffset, weight.byteLength / GROUP_INPUTS)
  const groups = QUANTISED_BLOCK / GROUP_INPUTS
  for (let out = 0; out < outFeatures; out++) {
    const lane = out % TILE_OUTPUTS
    const tile = (out - lane) / TILE_OUTPUTS
    for (let block = 0; block < blocks; block++) {
      const start = ((tile * blocks + block) * TILE_BLOCK_BYTES) / 4
      const from = (out * blocks + block) * groups
      for (let group = 0; group < groups; group++) {
        codes[start + group * TILE_OUTPUTS + lane] = source[from + group]!
      }
      floats[start + CODE_BYTES / 4 + lane] = scales[out * blocks + block]!
    }
  }
  return tiled
}
