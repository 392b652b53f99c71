/**
 * Encodes a WebAssembly module of a few functions over one memory (WebAssembly Core Specification 2.0, chapter 5), with the
 * handful of instructions that logits-kernel.ts needs. Instructions are byte arrays; sequences of them are concatenated.
 */

export type Code = readonly number[]

export const VALUE_TYPE = { i32: 0x7f, f32: 0x7d, f64: 0x7c, v128: 0x7b } as const
export type ValueType = keyof typeof VALUE_TYPE

export interface WasmFunction {
  name: string
  parameters: readonly ValueType[]
  result: ValueType
  /** After the parameters. */
  locals: readonly ValueType[]
  body: Code
}

const BLOCK_WITHOUT_RESULT = 0x40
/** Logarithms of the alignments in bytes. */
const V128_ALIGNMENT = 4
const SCALAR_ALIGNMENT = 2

export const get = (local: number): Code => [0x20, local]
export const set = (local: number): Code => [0x21, local]
export const tee = (local: number): Code => [0x22, local]
export const i32Const = (value: number): Code => [0x41, ...signedLeb(value)]
export const i32Add: Code = [0x6a]
export const i32LessUnsigned: Code = [0x49]
/** On an i32: 1 when it is 0. */
export const i32IsZero: Code = [0x45]
export const i32And: Code = [0x71]
export const i32ShiftLeft: Code = [0x74]
export const i32ShiftRight: Code = [0x76]
export const i32Store = (offset: number): Code => [0x36, SCALAR_ALIGNMENT, ...unsignedLeb(offset)]
export const f32Load = (offset: number): Code => [0x2a, SCALAR_ALIGNMENT, ...unsignedLeb(offset)]
export const f32Store = (offset: number): Code => [0x38, SCALAR_ALIGNMENT, ...unsignedLeb(offset)]
export const f32Greater: Code = [0x5e]
export const f64Add: Code = [0xa0]
export const v128Load = (offset = 0): Code => simd(0x00, [V128_ALIGNMENT, ...unsignedLeb(offset)])
export const v128Store = (offset = 0): Code => simd(0x0b, [V128_ALIGNMENT, ...unsignedLeb(offset)])
export const f32x4Splat: Code = simd(0x13)
export const f32x4Lane = (lane: number): Code => simd(0x1f, [lane])
export const f64x2Lane = (lane: number): Code => simd(0x21, [lane])
export const f32x4Add: Code = simd(0xe4)
export const f32x4Sub: Code = simd(0xe5)
export const f32x4Mul: Code = simd(0xe6)
/** NaN in either operand gives NaN. */
export const f32x4Max: Code = simd(0xe9)
export const f32x4Equal: Code = simd(0x41)
export const f32x4Greater: Code = simd(0x44)
export const f64x2Add: Code = simd(0xf0)
export const f64x2PromoteLow: Code = simd(0x5f)
export const v128Or: Code = simd(0x50)
export const v128AnyTrue: Code = simd(0x53)
export const i32x4ShiftLeft: Code = simd(0xab)
export const f32Max: Code = [0x97]

export function f32x4Const(value: number): Code {
  const bytes = new Uint8Array(new Float32Array([value, value, value, value]).buffer)
  return simd(0x0c, bytes)
}

/** The upper two lanes of a v128, moved to the lower two. */
export const highHalf = (vector: Code): Code => [
  ...vector,
  ...vector,
  ...simd(0x0d, [8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15]),
]

/** `if (condition) { body }`. */
export const when = (condition: Code, body: Code): Code => [...condition, 0x04, BLOCK_WITHOUT_RESULT, ...body, 0x0b]

/** `do { body } while (condition)`. */
export const doWhile = (body: Code, condition: Code): Code => [
  0x03,
  BLOCK_WITHOUT_RESULT,
  ...body,
  ...condition,
  ...[0x0d, 0x00],
  0x0b,
]

/** The bytes of a module that exports `functions` and, as `memory`, a memory of `pages` × 64 KiB. */
export function encodeModule(functions: readonly WasmFunction[], pages: number): Uint8Array<ArrayBuffer> {
  const types = functions.map((fn) => [
    0x60,
    ...vector(fn.parameters.map((type) => [VALUE_TYPE[type]])),
    ...vector([[VALUE_TYPE[fn.result]]]),
  ])
  const bodies = functions.map((fn) => {
    const locals = vector(fn.locals.map((type) => [1, VALUE_TYPE[type]]))
    const body = [...locals, ...fn.body, 0x0b]
    return [...unsignedLeb(body.length), ...body]
  })
  const exports = functions.map((fn, i) => [...text(fn.name), 0x00, ...unsignedLeb(i)])
  return new Uint8Array([
    ...[0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00],
    ...section(1, vector(types)),
    ...section(3, vector(functions.map((_, i) => unsignedLeb(i)))),
    ...section(5, vector([[0x00, ...unsignedLeb(pages)]])),
    ...section(7, vector([...exports, [...text('memory'), 0x02, 0x00]])),
    ...section(10, vector(bodies)),
  ])
}

function simd(opcode: number, immediates: Iterable<number> = []): Code {
  return [0xfd, ...unsignedLeb(opcode), ...immediates]
}

function section(id: number, content: Code): Code {
  return [id, ...unsignedLeb(content.length), ...content]
}

function vector(items: readonly Code[]): Code {
  return [...unsignedLeb(items.length), ...items.flat()]
}

function text(name: string): Code {
  return vector([...new TextEncoder().encode(name)].map((byte) => [byte]))
}

function unsignedLeb(value: number): Code {
  const low = value & 0x7f
  return value < 0x80 ? [low] : [low | 0x80, ...unsignedLeb(value >>> 7)]
}

function signedLeb(value: number): Code {
  const low = value & 0x7f
  const rest = value >> 7
  const done = (rest === 0 && (low & 0x40) === 0) || (rest === -1 && (low & 0x40) !== 0)
  return done ? [low] : [low | 0x80, ...signedLeb(rest)]
}
