import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Float16Array } from '@petamoriken/float16'
import fc from 'fast-check'
import { afterAll, describe, expect, test } from 'vitest'
import { widenFloats } from '../../../gpu-node/formats/float16.ts'
import {
  openSafetensors,
  parseSafetensorsHeader,
  readSafetensorsTensor,
  SafetensorsError,
} from '../../../gpu-node/formats/safetensors.ts'

const folder = mkdtempSync(join(tmpdir(), 'ringlet-safetensors-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** A file from a header as given (numbers may lie) and its data. */
function fileOf(header: unknown, data: Uint8Array, length?: bigint): Uint8Array {
  const json = new TextEncoder().encode(typeof header === 'string' ? header : JSON.stringify(header))
  const file = new Uint8Array(8 + json.length + data.length)
  new DataView(file.buffer).setBigUint64(0, length ?? BigInt(json.length), true)
  file.set(json, 8)
  file.set(data, 8 + json.length)
  return file
}

const parse = (file: Uint8Array) => parseSafetensorsHeader(file, file.length)
const twoTensors = {
  __metadata__: { format: 'pt' },
  a: { dtype: 'F32', shape: [2], data_offsets: [0, 8] },
  b: { dtype: 'BF16', shape: [2, 2], data_offsets: [8, 16] },
}
const twoTensorsData = new Uint8Array([0, 0, 128, 63, 0, 0, 0, 192, 128, 63, 0, 64, 64, 64, 128, 64])

describe('a well-formed file', () => {
  test('gives its tensors from memory and from disk alike', async () => {
    const bytes = fileOf(twoTensors, twoTensorsData)
    const header = parse(bytes)
    expect(header.metadata.get('format')).toBe('pt')
    const a = readSafetensorsTensor(bytes, header.tensors.get('a')!)
    const b = readSafetensorsTensor(bytes, header.tensors.get('b')!)
    expect([...a, ...b]).toEqual([1, -2, 1, 2, 3, 4])
    const path = join(folder, 'two.safetensors')
    writeFileSync(path, bytes)
    const file = await openSafetensors(path)
    const shared = new Float32Array(new SharedArrayBuffer(16))
    expect(await file.read('b', shared)).toBe(shared)
    expect([...(await file.read('a')), ...shared]).toEqual([1, -2, 1, 2, 3, 4])
    await file.close()
  })

  test('that shrinks after it was opened gives an error, not zeros', async () => {
    const path = join(folder, 'cut.safetensors')
    writeFileSync(path, fileOf(twoTensors, twoTensorsData))
    const file = await openSafetensors(path)
    truncateSync(path, file.size - 4)
    await expect(file.read('b')).rejects.toThrow(/cut while being read/)
    await file.close()
  })

  test('of a tensor that is no float is refused by name when it is read', () => {
    const file = fileOf({ ids: { dtype: 'I64', shape: [1], data_offsets: [0, 8] } }, new Uint8Array(8))
    const { tensors } = parse(file)
    expect(() => readSafetensorsTensor(file, tensors.get('ids')!)).toThrow(/'ids' is I64/)
  })
})

describe('a hostile file is refused with the numbers in conflict', () => {
  const entry = (changes: object) => ({ a: { dtype: 'F32', shape: [2], data_offsets: [0, 8], ...changes } })
  const eight = new Uint8Array(8)
  test.each<[string, Uint8Array, RegExp]>([
    ['empty', new Uint8Array(0), /has 0 bytes/],
    ['header longer than the file', fileOf(entry({}), eight, 4096n), /4096 bytes; the file has/],
    ['header beyond the cap', fileOf(entry({}), eight, 2n ** 63n), /the limit is 100000000/],
    ['no JSON', fileOf('{"a":', eight), /no JSON/],
    ['no UTF-8', fileOf(entry({}), eight).fill(255, 9, 12), /no JSON text in UTF-8/],
    ['an array', fileOf('[]', eight), /no JSON object/],
    [
      'tensors overlap',
      fileOf({ ...entry({}), b: { dtype: 'F32', shape: [1], data_offsets: [4, 8] } }, eight),
      /overlaps/,
    ],
    ['a hole', fileOf(entry({ shape: [1], data_offsets: [4, 8] }), eight), /hole/],
    ['data left over', fileOf(entry({}), new Uint8Array(12)), /the file has/],
    ['truncated', fileOf(entry({}), new Uint8Array(4)), /0 to 8; the file has 4/],
    ['offsets turned round', fileOf(entry({ data_offsets: [8, 0] }), eight), /8 to 0/],
    ['a shape that overflows', fileOf(entry({ shape: [2 ** 52, 2 ** 52, 2 ** 52] }), eight), /needs/],
    ['a negative size', fileOf(entry({ shape: [-2] }), eight), /non-negative/],
    ['a fraction', fileOf(entry({ shape: [1.5] }), eight), /non-negative/],
    ['an unknown dtype', fileOf(entry({ dtype: 'toString' }), eight), /dtype toString/],
    ['a thousand dimensions', fileOf(entry({ shape: Array(1000).fill(1) }), eight), /at most 16/],
    [
      'a name twice, once with its letter escaped',
      fileOf(`{"a":${JSON.stringify(entry({}).a)},"\\u0061":${JSON.stringify(entry({}).a)}}`, eight),
      /2 names, of which 1 differ/,
    ],
    [
      'a field twice',
      fileOf('{"a":{"dtype":"F16","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', eight),
      /4 fields, of which 3/,
    ],
    ['a byte order mark', fileOf(`\ufeff${JSON.stringify(entry({}))}`, eight), /no JSON/],
    ['metadata of numbers', fileOf({ __metadata__: { a: 1 } }, new Uint8Array(0)), /'a' is no string/],
  ])('%s', (_, file, message) => {
    expect(() => parse(file)).toThrow(SafetensorsError)
    expect(() => parse(file)).toThrow(message)
  })

  test('what would fill memory when parsed is refused before it is', () => {
    const limits = { maxHeaderBytes: 2 ** 24, maxTensors: 20_000 }
    const many = 1_000_000
    for (const [json, message] of [
      [`{"a":[${'{},'.repeat(many)}{}]}`, /1000003 objects and arrays/],
      [`{"a":${'['.repeat(many)}${']'.repeat(many)}}`, /1000001 objects and arrays/],
      [`{"__metadata__":{${'"":"",'.repeat(many)}"":""}}`, /1000001 fields/],
      [`{${'"a":0,'.repeat(many)}"a":0}`, /names 1000001 tensors; the limit is 20000/],
    ] as const) {
      const file = fileOf(json, new Uint8Array(0))
      expect(() => parseSafetensorsHeader(file, file.length, limits)).toThrow(message)
    }
  })

  test('names with quotes, colons and brackets in them are names like others', () => {
    const odd = { 'a":{[\\': { dtype: 'F32', shape: [2], data_offsets: [0, 8] } }
    expect([...parse(fileOf(odd, eight)).tensors.keys()]).toEqual(Object.keys(odd))
  })

  test('any mutation of a valid file is an error of ours or reads in bounds', () => {
    const valid = fileOf(twoTensors, twoTensorsData)
    const mutation = fc.oneof(
      fc.record({ at: fc.nat(valid.length - 1), byte: fc.nat(255) }),
      fc.record({ at: fc.nat(valid.length - 1), digit: fc.constantFrom(...'0123456789-.e"[]{},') }),
    )
    fc.assert(
      fc.property(
        fc.array(mutation, { minLength: 1, maxLength: 6 }),
        fc.option(fc.nat(valid.length)),
        (changes, cut) => {
          const file = valid.slice()
          for (const change of changes) {
            file[change.at] = 'byte' in change ? change.byte : change.digit.charCodeAt(0)
          }
          const bytes = cut === null ? file : file.slice(0, cut)
          try {
            for (const tensor of parse(bytes).tensors.values()) {
              expect(tensor.end).toBeLessThanOrEqual(bytes.length)
              if (['F32', 'BF16'].includes(tensor.dtype)) {
                expect(readSafetensorsTensor(bytes, tensor)).toHaveLength(tensor.elements)
              }
            }
          } catch (error) {
            expect(error).toBeInstanceOf(SafetensorsError)
          }
        },
      ),
      { numRuns: 3000 },
    )
  })
})

describe('widening', () => {
  test('all 65,536 halves equal the float16 library, NaNs included', () => {
    const codes = Uint16Array.from({ length: 65536 }, (_, i) => i)
    const out = new Float32Array(65536)
    widenFloats('F16', new Uint8Array(codes.buffer), out)
    const expected = Float32Array.from(new Float16Array(codes.buffer))
    expect(out.every((value, i) => Object.is(value, expected[i]))).toBe(true)
  })

  test('f8 follows the OCP tables', () => {
    const f8 = (dtype: 'F8_E4M3' | 'F8_E5M2', code: number) => {
      const out = new Float32Array(1)
      widenFloats(dtype, Uint8Array.of(code), out)
      return out[0]
    }
    expect([0x00, 0x01, 0x08, 0x38, 0x7e, 0xfe, 0x7f].map((code) => f8('F8_E4M3', code))).toEqual([
      0,
      2 ** -9,
      2 ** -6,
      1,
      448,
      -448,
      Number.NaN,
    ])
    expect([0x01, 0x3c, 0x7b, 0x7c, 0xfc, 0x7d].map((code) => f8('F8_E5M2', code))).toEqual([
      2 ** -16,
      1,
      57344,
      Number.POSITIVE_INFINITY,
      Number.NEGATIVE_INFINITY,
      Number.NaN,
    ])
  })

  test('works from an odd offset and rounds f64', () => {
    const bytes = new Uint8Array(17)
    bytes.set(new Uint8Array(Float64Array.of(0.1, -2).buffer), 1)
    const out = new Float32Array(2)
    widenFloats('F64', bytes.subarray(1), out)
    expect([...out]).toEqual([Math.fround(0.1), -2])
  })
})
