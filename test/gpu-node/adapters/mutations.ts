/** Weight files of every format with damage done to them. */

import { Buffer } from 'node:buffer'
import fc from 'fast-check'
import { adapterFiles } from '../../support/golden-fixtures.ts'

const ORIGINALS: [string, Uint8Array][] = [
  ['adapter_model.safetensors', adapterFiles('regex-r1')['adapter_model.safetensors']!],
  ['adapter_model.bin', adapterFiles('all-r4-bin', 'adapter_model.bin')['adapter_model.bin']!],
  ['adapter_model.bin', adapterFiles('all-r4-bin-legacy', 'adapter_model.bin')['adapter_model.bin']!],
]

/** Even over [0, 1): fast-check's own doubles are even over bit patterns, of which nearly all are next to 0. */
const share = fc.noBias(fc.nat(9_999)).map((n) => n / 10_000)

/** Bytes changed, pieces cut out or doubled: half of them near the start, where most descriptions are; few that break every offset. */
export const mutation = fc.record({
  which: fc.nat(ORIGINALS.length - 1),
  edits: fc.array(
    fc.record({
      kind: fc.constantFrom('set', 'set', 'flip', 'flip', 'flip', 'flip', 'cut', 'double', 'end'),
      at: fc.oneof(
        share.map((at) => at * 0.15),
        share,
      ),
      length: fc.oneof(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 64 })),
      byte: fc.integer({ min: 0, max: 255 }),
    }),
    { minLength: 1, maxLength: 4 },
  ),
})

export interface Mutation {
  which: number
  edits: { kind: string; at: number; length: number; byte: number }[]
}

/** The config that belongs to the file. */
export function configOf({ which }: Mutation): Record<string, Uint8Array> {
  const source = which === 0 ? 'regex-r1' : 'all-r4'
  return { 'adapter_config.json': adapterFiles(source)['adapter_config.json']! }
}

export function mutate({ which, edits }: Mutation): [string, Uint8Array] {
  const [name, original] = ORIGINALS[which]!
  let bytes = Buffer.from(original)
  for (const { kind, at, length, byte } of edits) {
    const position = Math.min(Math.floor(at * bytes.length), Math.max(bytes.length - 1, 0))
    const before = bytes.subarray(0, position)
    const piece = bytes.subarray(position, position + length)
    const after = bytes.subarray(position + length)
    switch (kind) {
      case 'set':
        bytes = Buffer.concat([before, Buffer.alloc(piece.length, byte), after])
        break
      case 'flip':
        bytes = Buffer.concat([before, piece.map((value) => value ^ (1 << (byte & 7))), after])
        break
      case 'cut':
        bytes = Buffer.concat([before, after])
        break
      case 'double':
        bytes = Buffer.concat([before, piece, piece, after])
        break
      default:
        bytes = bytes.subarray(0, position)
    }
  }
  return [name, bytes]
}
