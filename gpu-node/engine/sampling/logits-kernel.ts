/**
 * The passes over a whole row of logits, as WebAssembly SIMD: largest score and its place, Σ exp with or without keeping the
 * terms, and which terms are large. In JavaScript the same passes take several times as long (figures: docs/sampling.md).
 */

import type { Code, ValueType, WasmFunction } from './wasm-module.ts'
import * as wasm from './wasm-module.ts'

/** What is used of the WebAssembly JavaScript API: the compiler's library set for Node declares none of it. */
declare const WebAssembly: {
  Module: new (bytes: Uint8Array<ArrayBuffer>) => object
  Instance: new (module: object) => { exports: KernelExports }
}

/** Elements a loop iteration takes: four vectors of four. */
const STRIDE = 16
const PAGE_BYTES = 65536
const VECTOR_BYTES = 16
const STRIDE_BYTES = STRIDE * 4

/** What `weigh` writes for impossible tokens (score -Infinity) and for those less likely than this beside the best one. */
export const NO_WEIGHT = 2 ** -125

/**
 * Rows of scratch of the kernel's own, `vocabSize` elements each. `scores` holds what the sampler works on, `weights` what
 * `weigh` writes, `kept` and `keptTokens` what `keepAbove` finds. The padding behind `scores` is -Infinity: it never counts.
 */
export class LogitsKernel {
  readonly scores: Float32Array
  readonly weights: Float32Array
  readonly keptTokens: Int32Array
  readonly kept: Float32Array
  readonly #exports: KernelExports

  constructor(vocabSize: number) {
    const bytes = Math.ceil(vocabSize / STRIDE) * STRIDE_BYTES
    const layout: Layout = { bytes, weights: bytes, keptTokens: 2 * bytes, kept: 3 * bytes }
    this.#exports = new WebAssembly.Instance(new WebAssembly.Module(encodeKernel(layout))).exports
    const { buffer } = this.#exports.memory
    new Float32Array(buffer, 0, bytes / 4).fill(-Infinity)
    this.scores = new Float32Array(buffer, 0, vocabSize)
    this.weights = new Float32Array(buffer, layout.weights, vocabSize)
    this.keptTokens = new Int32Array(buffer, layout.keptTokens, vocabSize)
    this.kept = new Float32Array(buffer, layout.kept, vocabSize)
  }

  /** The largest score; NaN when any score is NaN. */
  max(): number {
    return this.#exports.max()
  }

  /** The first place of `score`, which must be there. */
  indexOf(score: number): number {
    const end = this.#exports.find(score) / 4
    let at = end - STRIDE
    while (this.scores[at] !== score && at < end) {
      at++
    }
    return at
  }

  /** Σ exp(score − shift); `shift` is at least the largest score. Relative error < 1e-6. */
  sumExp(shift: number): number {
    return this.#exports.sumExp(shift)
  }

  /** Writes exp((score − shift) · scale), at least 2^-126, to `weights` and returns their sum. */
  weigh(shift: number, scale: number): number {
    return this.#exports.weigh(shift, scale * Math.LOG2E)
  }

  /** Lists the tokens whose weight is above `limit` (at least `NO_WEIGHT`), by rising id, and says how many they are. */
  keepAbove(limit: number): number {
    return this.#exports.keepAbove(limit) / 4
  }
}

interface KernelExports {
  memory: { buffer: ArrayBuffer }
  max(): number
  /** The byte behind the stride in which it is. */
  find(score: number): number
  sumExp(shift: number): number
  weigh(shift: number, scale: number): number
  /** The number of bytes written to each list. */
  keepAbove(limit: number): number
}

/** Where each row starts; scores start at 0. All in bytes. */
interface Layout {
  bytes: number
  weights: number
  keptTokens: number
  kept: number
}

function encodeKernel(layout: Layout): Uint8Array<ArrayBuffer> {
  const functions = [maxFunction, findFunction, sumExpFunction, weighFunction, keepFunction]
  const pages = Math.ceil((layout.kept + layout.bytes) / PAGE_BYTES)
  return wasm.encodeModule(
    functions.map((make) => make(layout)),
    pages,
  )
}

const nextStride = (at: number): Code => [
  ...wasm.get(at),
  ...wasm.i32Const(STRIDE_BYTES),
  ...wasm.i32Add,
  ...wasm.tee(at),
]
const loadAt = (at: number, vector: number, row = 0): Code => [
  ...wasm.get(at),
  ...wasm.v128Load(row + vector * VECTOR_BYTES),
]

function maxFunction({ bytes }: Layout): WasmFunction {
  const at = 0
  const best = [1, 2, 3, 4]
  const first = best.flatMap((local) => [...wasm.f32x4Const(-Infinity), ...wasm.set(local)])
  const body = best.flatMap((local, i) => [...wasm.get(local), ...loadAt(at, i), ...wasm.f32x4Max, ...wasm.set(local)])
  const fold = [
    ...[...wasm.get(1), ...wasm.get(2), ...wasm.f32x4Max],
    ...[...wasm.get(3), ...wasm.get(4), ...wasm.f32x4Max],
    ...[...wasm.f32x4Max, ...wasm.set(1)],
  ]
  const lane = (i: number): Code => [...wasm.get(1), ...wasm.f32x4Lane(i)]
  const lanes = [...lane(0), ...lane(1), ...wasm.f32Max, ...lane(2), ...lane(3), ...wasm.f32Max, ...wasm.f32Max]
  return {
    name: 'max',
    parameters: [],
    result: 'f32',
    locals: ['i32', ...vectors(4)],
    body: [...first, ...strideLoop(at, bytes, body), ...fold, ...lanes],
  }
}

function sumExpFunction({ bytes }: Layout): WasmFunction {
  const locals = { shift: 0, at: 1, t: 2, u: 3, four: 4, low: 5, high: 6, shift4: 7 }
  const term = (i: number): Code => [
    ...[...loadAt(locals.at, i), ...wasm.get(locals.shift4), ...wasm.f32x4Sub],
    ...[...wasm.f32x4Const(Math.LOG2E), ...wasm.f32x4Mul],
    ...exp2OfTop(locals.t, locals.u),
  ]
  return {
    name: 'sumExp',
    parameters: ['f32'],
    result: 'f64',
    locals: ['i32', ...vectors(6)],
    body: [
      ...[...wasm.get(locals.shift), ...wasm.f32x4Splat, ...wasm.set(locals.shift4)],
      ...strideLoop(locals.at, bytes, [...sumOfFour(term), ...addToDoubles(locals)]),
      ...sumOfDoubles(locals),
    ],
  }
}

function weighFunction({ bytes, weights }: Layout): WasmFunction {
  const locals = { shift: 0, scale: 1, at: 2, t: 3, u: 4, four: 5, low: 6, high: 7, shift4: 8, scale4: 9 }
  const term = (i: number): Code => [
    ...wasm.get(locals.at),
    ...[...loadAt(locals.at, i), ...wasm.get(locals.shift4), ...wasm.f32x4Sub],
    ...[...wasm.get(locals.scale4), ...wasm.f32x4Mul],
    ...exp2OfTop(locals.t, locals.u),
    ...[...wasm.tee(locals.t), ...wasm.v128Store(weights + i * VECTOR_BYTES), ...wasm.get(locals.t)],
  ]
  return {
    name: 'weigh',
    parameters: ['f32', 'f32'],
    result: 'f64',
    locals: ['i32', ...vectors(7)],
    body: [
      ...[...wasm.get(locals.shift), ...wasm.f32x4Splat, ...wasm.set(locals.shift4)],
      ...[...wasm.get(locals.scale), ...wasm.f32x4Splat, ...wasm.set(locals.scale4)],
      ...strideLoop(locals.at, bytes, [...sumOfFour(term), ...addToDoubles(locals)]),
      ...sumOfDoubles(locals),
    ],
  }
}

function findFunction({ bytes }: Layout): WasmFunction {
  const locals = { value: 0, at: 1, value4: 2, hits: 3 }
  const equals = (i: number): Code => [...loadAt(locals.at, i), ...wasm.get(locals.value4), ...wasm.f32x4Equal]
  const inRange = [...nextStride(locals.at), ...wasm.i32Const(bytes), ...wasm.i32LessUnsigned]
  const noHit = [...wasm.get(locals.hits), ...wasm.v128AnyTrue, ...wasm.i32IsZero]
  return {
    name: 'find',
    parameters: ['f32'],
    result: 'i32',
    locals: ['i32', ...vectors(2)],
    body: [
      ...[...wasm.get(locals.value), ...wasm.f32x4Splat, ...wasm.set(locals.value4)],
      ...wasm.doWhile([...orOfFour(equals), ...wasm.set(locals.hits)], [...inRange, ...noHit, ...wasm.i32And]),
      ...wasm.get(locals.at),
    ],
  }
}

function keepFunction({ bytes, weights, keptTokens, kept }: Layout): WasmFunction {
  const locals = { limit: 0, at: 1, end: 2, weight: 3, limit4: 4 }
  const above = (i: number): Code => [
    ...loadAt(locals.at, i, weights),
    ...wasm.get(locals.limit4),
    ...wasm.f32x4Greater,
  ]
  // Writes each of the stride's items at the end of the lists, and moves the end behind those that stay.
  const keepOne = (i: number): Code => [
    ...[...wasm.get(locals.end), ...wasm.get(locals.at), ...wasm.i32Const(2), ...wasm.i32ShiftRight],
    ...[...wasm.i32Const(i), ...wasm.i32Add, ...wasm.i32Store(keptTokens)],
    ...[...wasm.get(locals.end), ...wasm.get(locals.at), ...wasm.f32Load(weights + 4 * i)],
    ...[...wasm.tee(locals.weight), ...wasm.f32Store(kept)],
    ...[...wasm.get(locals.end), ...wasm.get(locals.weight), ...wasm.get(locals.limit), ...wasm.f32Greater],
    ...[...wasm.i32Const(2), ...wasm.i32ShiftLeft, ...wasm.i32Add, ...wasm.set(locals.end)],
  ]
  const keepStride = Array.from({ length: STRIDE }, (_, i) => keepOne(i)).flat()
  return {
    name: 'keepAbove',
    parameters: ['f32'],
    result: 'i32',
    locals: ['i32', 'i32', 'f32', ...vectors(1)],
    body: [
      ...[...wasm.get(locals.limit), ...wasm.f32x4Splat, ...wasm.set(locals.limit4)],
      ...strideLoop(locals.at, bytes, wasm.when([...orOfFour(above), ...wasm.v128AnyTrue], keepStride)),
      ...wasm.get(locals.end),
    ],
  }
}

const vectors = (count: number): ValueType[] => new Array<ValueType>(count).fill('v128')

const orOfFour = (term: (i: number) => Code): Code => [
  ...[...term(0), ...term(1), ...wasm.v128Or],
  ...[...term(2), ...term(3), ...wasm.v128Or],
  ...wasm.v128Or,
]

const sumOfFour = (term: (i: number) => Code): Code => [
  ...[...term(0), ...term(1), ...wasm.f32x4Add],
  ...[...term(2), ...wasm.f32x4Add],
  ...[...term(3), ...wasm.f32x4Add],
]

function strideLoop(at: number, bytes: number, body: Code): Code {
  return wasm.doWhile(body, [...nextStride(at), ...wasm.i32Const(bytes), ...wasm.i32LessUnsigned])
}

/** The four floats on the stack are added up in double precision: vocabularies are too long for single. */
function addToDoubles(locals: { four: number; low: number; high: number }): Code {
  return [
    ...wasm.set(locals.four),
    ...[
      ...wasm.get(locals.low),
      ...wasm.get(locals.four),
      ...wasm.f64x2PromoteLow,
      ...wasm.f64x2Add,
      ...wasm.set(locals.low),
    ],
    ...[...wasm.get(locals.high), ...wasm.highHalf(wasm.get(locals.four)), ...wasm.f64x2PromoteLow],
    ...[...wasm.f64x2Add, ...wasm.set(locals.high)],
  ]
}

function sumOfDoubles(locals: { low: number; high: number }): Code {
  return [
    ...[...wasm.get(locals.low), ...wasm.get(locals.high), ...wasm.f64x2Add, ...wasm.set(locals.low)],
    ...[...wasm.get(locals.low), ...wasm.f64x2Lane(0), ...wasm.get(locals.low), ...wasm.f64x2Lane(1), ...wasm.f64Add],
  ]
}

/**
 * Minimax polynomial of 2^f in relative error on |f| ≤ 1/2 (Remez exchange): 7.5e-8 at most, below single precision's own.
 * Lowest degree first.
 */
const EXP2_POLYNOMIAL = [1.000000072, 0.6931469671, 0.2402211972, 0.05550713274, 0.009675541334, 0.001327647198]
/**
 * Added to a single of at most 2^21 it rounds to an integer n, and leaves n + 127 in the low bits: shifted left by 23 they
 * are the bits of 2^n.
 */
const ROUND_AND_BIAS = 1.5 * 2 ** 23 + 127
/** 2^t below it counts as 2^-126 (`NO_WEIGHT`); keeps the exponent in range for -Infinity. */
const SMALLEST_EXPONENT = -126

/** 2^t of the vector on the stack, for t ≤ 0. */
function exp2OfTop(t: number, u: number): Code {
  const [constant, ...rising] = EXP2_POLYNOMIAL
  const [leading, ...falling] = rising.reverse()
  const horner = [...falling, constant as number].flatMap((coefficient) => [
    ...[...wasm.get(t), ...wasm.f32x4Mul],
    ...[...wasm.f32x4Const(coefficient), ...wasm.f32x4Add],
  ])
  return [
    ...[...wasm.f32x4Const(SMALLEST_EXPONENT), ...wasm.f32x4Max, ...wasm.tee(t)],
    ...[...wasm.f32x4Const(ROUND_AND_BIAS), ...wasm.f32x4Add, ...wasm.set(u)],
    ...[...wasm.get(t), ...wasm.get(u), ...wasm.f32x4Const(ROUND_AND_BIAS), ...wasm.f32x4Sub, ...wasm.f32x4Sub],
    ...[...wasm.set(t), ...wasm.f32x4Const(leading as number), ...horner],
    ...[...wasm.get(u), ...wasm.i32Const(23), ...wasm.i32x4ShiftLeft, ...wasm.f32x4Mul],
  ]
}
