/** Weight files of every format with damage done to them. */

import { Buffer } from 'node:buffer'
import fc from 'fast-check'
import { adapterFiles } from '../../support/golden-fixtures.ts'

const ORIGINALS: [string, Uint8Array][] = [
  ['adapter_model.safetensors', adapterFiles('regex-r1')['adapter_model.safetensors']!],
  ['adapter_model.bin', adapterFiles('all-r4-bin', 'adapter_model.bin')['adapter_model.bin']!],
  ['adapter_model.bin', adapterFiles('all-r4-bin-legacy', 'adapter_model.bin')['adapter_model.bin']!],
]

/** Bytes changed, pieces cut out, doubled or swapped: mostly near the start, where the descriptions are. */
export const mutation = fc.record({
  which: fc.nat(ORIGINALS.length - 1),
  edits: fc.array(
    fc.record({
      kind: fc.constantFrom('set', 'cut', 'double', 'flip', 'end'),
      at: fc.oneof(fc.double({ min: 0, max: 0.15, noNaN: true }), fc.double({ min: 0, max: 1, noNaN: true })),
      length: fc.integer({ min: 1, max: 64 }),
      byte: fc.integer({ min: 0, max: 255 }),
    }),
    { minLength: 1, maxLength: 6 },
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
