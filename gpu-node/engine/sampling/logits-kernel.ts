/**
 * The passes over a whole row of logits that every token needs, as WebAssembly SIMD: largest score, and Σ exp with or without
 * keeping the terms. In JavaScript the same passes take about four times as long (docs/sampling.md has the figures).
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
 * Two rows of scratch of the kernel's own. `scores` holds what the sampler works on; `weights` what `weigh` writes.
 * Both have `vocabSize` elements; the padding behind `scores` is -Infinity, so it never counts.
 */
export class LogitsKernel {
  readonly scores: Float32Array
  readonly weights: Float32Array
  readonly #bytes: number
  readonly #weightsAt: number
  readonly #exports: KernelExports

  constructor(vocabSize: number) {
    this.#bytes = Math.ceil(vocabSize / STRIDE) * STRIDE_BYTES
    this.#weightsAt = this.#bytes
    const pages = Math.ceil((2 * this.#bytes) / PAGE_BYTES)
    this.#exports = new WebAssembly.Instance(new WebAssembly.Module(encodeKernel(pages))).exports
    const buffer = this.#exports.memory.buffer
    new Float32Array(buffer, 0, this.#bytes / 4).fill(-Infinity)
    this.scores = new Float32Array(buffer, 0, vocabSize)
    this.weights = new Float32Array(buffer, this.#weightsAt, vocabSize)
  }

  /** The largest score; NaN when any score is NaN. */
  max(): number {
    return this.#exports.max(this.#bytes)
  }

  /** The first place of `score`, which must be there. */
  indexOf(score: number): number {
    const end = this.#exports.find(this.#bytes, score) / 4
    let at = end - STRIDE
    while (this.scores[at] !== score && at < end) {
      at++
    }
    return at
  }

  /** Σ exp(score − shift); `shift` is at least the largest score. Relative error < 1e-6. */
  sumExp(shift: number): number {
    return this.#exports.sumExp(this.#bytes, shift)
  }

  /** Writes exp((score − shift) · scale), at least 2^-126, to `weights` and returns their sum. */
  weigh(shift: number, scale: number): number {
    return this.#exports.weigh(this.#bytes, shift, scale * Math.LOG2E, this.#weightsAt)
  }
}

interface KernelExports {
  memory: { buffer: ArrayBuffer }
  max(bytes: number): number
  find(bytes: number, score: number): number
  sumExp(bytes: number, shift: number): number
  weigh(bytes: number, shift: number, scale: number, weightsAt: number): number
}

function encodeKernel(pages: number): Uint8Array<ArrayBuffer> {
  return wasm.encodeModule([maxFunction(), findFunction(), sumExpFunction(), weighFunction()], pages)
}

const nextStride = (at: number): Code => [
  ...wasm.get(at),
  ...wasm.i32Const(STRIDE_BYTES),
  ...wasm.i32Add,
  ...wasm.tee(at),
]
const loadAt = (at: number, vector: number): Code => [...wasm.get(at), ...wasm.v128Load(vector * VECTOR_BYTES)]

function maxFunction(): WasmFunction {
  const bytes = 0
  const at = 1
  const best = [2, 3, 4, 5]
  const first = best.flatMap((local) => [...wasm.f32x4Const(-Infinity), ...wasm.set(local)])
  const body = best.flatMap((local, i) => [...wasm.get(local), ...loadAt(at, i), ...wasm.f32x4Max, ...wasm.set(local)])
  const fold = [
    ...[...wasm.get(2), ...wasm.get(3), ...wasm.f32x4Max],
    ...[...wasm.get(4), ...wasm.get(5), ...wasm.f32x4Max],
    ...[...wasm.f32x4Max, ...wasm.set(2)],
  ]
  const lane = (i: number): Code => [...wasm.get(2), ...wasm.f32x4Lane(i)]
  const lanes = [...lane(0), ...lane(1), ...wasm.f32Max, ...lane(2), ...lane(3), ...wasm.f32Max, ...wasm.f32Max]
  return {
    name: 'max',
    parameters: ['i32'],
    result: 'f32',
    locals: ['i32', ...vectors(4)],
    body: [...first, ...strideLoop(at, bytes, body), ...fold, ...lanes],
  }
}

function sumExpFunction(): WasmFunction {
  const locals = { bytes: 0, shift: 1, at: 2, t: 3, u: 4, four: 5, low: 6, high: 7, shift4: 8 }
  const term = (i: number): Code => [
    ...[...loadAt(locals.at, i), ...wasm.get(locals.shift4), ...wasm.f32x4Sub],
    ...[...wasm.f32x4Const(Math.LOG2E), ...wasm.f32x4Mul],
    ...exp2OfTop(locals.t, locals.u),
  ]
  return {
    name: 'sumExp',
    parameters: ['i32', 'f32'],
    result: 'f64',
    locals: ['i32', ...vectors(6)],
    body: [
      ...[...wasm.get(locals.shift), ...wasm.f32x4Splat, ...wasm.set(locals.shift4)],
      ...strideLoop(locals.at, locals.bytes, [...sumOfFour(term), ...addToDoubles(locals)]),
      ...sumOfDoubles(locals),
    ],
  }
}

function weighFunction(): WasmFunction {
  const locals = {
    bytes: 0,
    shift: 1,
    scale: 2,
    to: 3,
    at: 4,
    t: 5,
    u: 6,
    four: 7,
    low: 8,
    high: 9,
    shift4: 10,
    scale4: 11,
  }
  const term = (i: number): Code => [
    ...wasm.get(locals.to),
    ...[
      ...loadAt(locals.at, i),
      ...wasm.get(locals.shift4),
      ...wasm.f32x4Sub,
      ...wasm.get(locals.scale4),
      ...wasm.f32x4Mul,
    ],
    ...exp2OfTop(locals.t, locals.u),
    ...[...wasm.tee(locals.t), ...wasm.v128Store(i * VECTOR_BYTES), ...wasm.get(locals.t)],
  ]
  const nextTarget = [...wasm.get(locals.to), ...wasm.i32Const(STRIDE_BYTES), ...wasm.i32Add, ...wasm.set(locals.to)]
  return {
    name: 'weigh',
    parameters: ['i32', 'f32', 'f32', 'i32'],
    result: 'f64',
    locals: ['i32', ...vectors(7)],
    body: [
      ...[...wasm.get(locals.shift), ...wasm.f32x4Splat, ...wasm.set(locals.shift4)],
      ...[...wasm.get(locals.scale), ...wasm.f32x4Splat, ...wasm.set(locals.scale4)],
      ...strideLoop(locals.at, locals.bytes, [...sumOfFour(term), ...addToDoubles(locals), ...nextTarget]),
      ...sumOfDoubles(locals),
    ],
  }
}

/** Returns the byte behind the first stride that holds `value`. */
function findFunction(): WasmFunction {
  const locals = { bytes: 0, value: 1, at: 2, value4: 3, hits: 4 }
  const equals = (i: number): Code => [...loadAt(locals.at, i), ...wasm.get(locals.value4), ...wasm.f32x4Equal]
  const hits = [...equals(0), ...equals(1), ...wasm.v128Or, ...equals(2), ...equals(3), ...wasm.v128Or, ...wasm.v128Or]
  const inRange = [...nextStride(locals.at), ...wasm.get(locals.bytes), ...wasm.i32LessUnsigned]
  const noHit = [...wasm.get(locals.hits), ...wasm.v128AnyTrue, ...wasm.i32IsZero]
  return {
    name: 'find',
    parameters: ['i32', 'f32'],
    result: 'i32',
    locals: ['i32', ...vectors(2)],
    body: [
      ...[...wasm.get(locals.value), ...wasm.f32x4Splat, ...wasm.set(locals.value4)],
      ...wasm.doWhile([...hits, ...wasm.set(locals.hits)], [...inRange, ...noHit, ...wasm.i32And]),
      ...wasm.get(locals.at),
    ],
  }
}

const vectors = (count: number): ValueType[] => new Array<ValueType>(count).fill('v128')

const sumOfFour = (term: (i: number) => Code): Code => [
  ...[...term(0), ...term(1), ...wasm.f32x4Add],
  ...[...term(2), ...wasm.f32x4Add],
  ...[...term(3), ...wasm.f32x4Add],
]

function strideLoop(at: number, bytes: number, body: Code): Code {
  return wasm.doWhile(body, [...nextStride(at), ...wasm.get(bytes), ...wasm.i32LessUnsigned])
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
