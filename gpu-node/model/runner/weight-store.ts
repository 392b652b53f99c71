/** The initializers of a base model: read from the checkpoint once, brought into the graph's layout, shared by all sessions. */

import { RingletError } from '../../../shared/errors.ts'
import type { OrtEnvironment } from '../../ort/environment.ts'
import { tiledBytes, tileRows } from '../../ort/linear-kernel/linear-layout.ts'
import { HugeArena } from '../../ort/system-memory.ts'
import { OrtTensor } from '../../ort/tensor.ts'
import type { DecoderSpec, LinearSpec, RopeTable } from '../decoder-spec.ts'
import { isTiled, matrixBits, type WeightFormat } from '../graph/graph-form.ts'
import {
  isRouter,
  type MatrixPlan,
  type NormPlan,
  planMatrices,
  planNorms,
  type WeightPlan,
} from '../graph/weight-plan.ts'
import { allocateQuantised, QUANTISED_BLOCK, quantiseRows } from '../quantise.ts'
import type { CachedWeight, GraphWeight, KeptWeights, WeightCache } from '../weight-cache.ts'
import { makeMatrices } from './make-matrices.ts'
import type { MatrixPlace, MatrixWork } from './matrix-rows.ts'
import { type EmbeddingTable, readEmbeddingTable } from './token-embedding.ts'
import type { WeightSource } from './weight-source.ts'

export type Progress = (done: number, total: number) => void

export interface LoadOptions {
  /** int8 matrices in tiles, for the int8 product's kernel. */
  tiled?: boolean
  /** Where the quantised weights of an earlier start lie. */
  cache?: WeightCache
  onProgress?: Progress
}

export interface WeightStore {
  initializers: ReadonlyMap<string, OrtTensor>
  bytes: number
  /** Of the token embeddings, where it was kept on the disk. */
  embedding: EmbeddingTable | undefined
  /** As `KeptWeights.settle`: to be called until it returns false. */
  settle(): boolean
  /** As `KeptWeights.filed`: the token embeddings in it. */
  filed: Promise<EmbeddingTable | undefined>
  dispose(): void
}

export async function loadWeights(
  environment: OrtEnvironment,
  source: WeightSource,
  plan: WeightPlan,
  format: WeightFormat,
  options: LoadOptions = {},
): Promise<WeightStore> {
  const { weights, settle, dispose, filed } = await readOrMakeWeights(source, plan, format, options)
  const initializers = new Map<string, OrtTensor>()
  let bytes = 0
  let embedding: EmbeddingTable | undefined
  for (const weight of [...weights, ...ropeWeights(source.decoder)]) {
    if (isEmbedding(weight)) {
      embedding = weight.data
    } else {
      const { name, type, shape, data } = weight
      initializers.set(name, new OrtTensor(environment, type, shape, data))
      bytes += data.byteLength
    }
  }
  return {
    initializers,
    bytes,
    embedding,
    settle,
    filed: tableOf(filed),
    dispose: () => {
      for (const tensor of initializers.values()) {
        tensor.dispose()
      }
      initializers.clear()
      dispose()
    },
  }
}

/** In the cache. */
const EMBEDDING = 'embedding.table'

type EmbeddingWeight = CachedWeight & { data: EmbeddingTable }

function isEmbedding(weight: CachedWeight): weight is EmbeddingWeight {
  return weight.name === EMBEDDING
}

async function tableOf(filed: KeptWeights['filed']): Promise<EmbeddingTable | undefined> {
  const weight = await filed
  return weight !== undefined && isEmbedding(weight) ? weight.data : undefined
}

async function readOrMakeWeights(
  source: WeightSource,
  plan: WeightPlan,
  format: WeightFormat,
  options: LoadOptions,
): Promise<KeptWeights> {
  const { cache, onProgress = () => {} } = options
  const known = await cache?.read()
  if (known !== undefined) {
    onProgress(1, 1)
    return known
  }
  const make = () => makeWeights(source, plan, format, options)
  return cache === undefined
    ? { weights: await make(), settle: () => false, dispose: () => {} }
    : cache.make({ rare: EMBEDDING, make })
}

/** One copy, in huge pages; the matrices by all cores where the source says where their numbers lie. */
async function makeWeights(
  source: WeightSource,
  plan: WeightPlan,
  format: WeightFormat,
  { tiled = false, onProgress = () => {} }: LoadOptions,
): Promise<CachedWeight[]> {
  const arena = new HugeArena()
  const take = (bytes: number) => arena.take(bytes)
  const weights: CachedWeight[] = []
  const works: MatrixWork[] = []
  const matrices = planMatrices(plan)
  const total = matrices.reduce((sum, matrix) => sum + countNumbers(matrix), 0)
  let done = 0
  for (const matrix of matrices) {
    const placed = placeMatrix(matrix, format, tiled, take)
    weights.push(...placed.weights, ...(await makeBias(source, matrix)))
    const work = toWork(source, matrix, placed.place)
    if (work !== undefined) {
      works.push(work)
    } else {
      await fillMatrix(source, matrix, placed.place)
      done += countNumbers(matrix)
      onProgress(done, total)
    }
  }
  for (const norm of planNorms(plan)) {
    weights.push(...(await makeNorm(source, norm)))
  }
  const table = placeEmbedding(source)
  weights.push(table?.weight ?? (await embeddingWeight(source)))
  await makeMatrices([...works, ...(table?.works ?? [])], (share, shares) => {
    onProgress(done + Math.floor(((total - done) * share) / shares), total)
  })
  return weights
}

function countNumbers({ inFeatures, outFeatures }: MatrixPlan): number {
  return inFeatures * outFeatures
}

/** `undefined`: this thread has to read it. */
function toWork(source: WeightSource, matrix: MatrixPlan, place: MatrixPlace): MatrixWork | undefined {
  const { parts, inFeatures, outFeatures, multiplier } = matrix
  if (source.stored === undefined || parts.some(({ transposed }) => transposed)) {
    return undefined
  }
  const stored = parts.map(({ weight, outFeatures: rows }) => ({ ...source.stored!(weight), rows }))
  return { parts: stored, rows: outFeatures, columns: inFeatures, multiplier, place }
}

/** Of bfloat16 that any thread can copy. On pages of its own, as it goes when its file is there. */
function placeEmbedding(source: WeightSource): { weight: CachedWeight; works: MatrixWork[] } | undefined {
  const { vocabSize, hiddenSize, embedding } = source.decoder
  const stored = source.stored?.(embedding.weight)
  if (stored?.dtype !== 'BF16') {
    return undefined
  }
  const bytes = new HugeArena().take(2 * vocabSize * hiddenSize)
  const data = new Uint16Array(bytes.buffer, bytes.byteOffset, vocabSize * hiddenSize)
  const place = { rows: vocabSize, columns: hiddenSize, multiplier: 1, place: { kind: 'stored', bytes } } as const
  return {
    weight: { name: EMBEDDING, type: 'bfloat16', shape: [vocabSize, hiddenSize], data },
    works: [{ ...place, parts: [{ ...stored, rows: vocabSize }] }],
  }
}

async function embeddingWeight(source: WeightSource): Promise<CachedWeight> {
  const { vocabSize, hiddenSize } = source.decoder
  const place = { name: EMBEDDING, shape: [vocabSize, hiddenSize] }
  const data = await readEmbeddingTable(source)
  return data instanceof Float32Array ? { ...place, type: 'float32', data } : { ...place, type: 'bfloat16', data }
}

/** A matrix in arrays of its own. */
export async function makeMatrix(
  source: WeightSource,
  matrix: MatrixPlan,
  format: WeightFormat,
  tiled: boolean,
): Promise<GraphWeight[]> {
  const { place, weights } = placeMatrix(matrix, format, tiled, sharedBytes)
  await fillMatrix(source, matrix, place)
  return [...weights, ...(await makeBias(source, matrix))]
}

async function makeBias(source: WeightSource, matrix: MatrixPlan): Promise<GraphWeight[]> {
  const { name, outFeatures, hasBias } = matrix
  return hasBias ? [floats(`${name}.bias`, [outFeatures], await readBias(source, matrix))] : []
}

/** Room for a matrix, and what the graph calls its arrays. */
function placeMatrix(
  matrix: MatrixPlan,
  format: WeightFormat,
  tiled: boolean,
  take: (bytes: number) => Uint8Array,
): { place: MatrixPlace; weights: GraphWeight[] } {
  const { name, inFeatures, outFeatures } = matrix
  if (format === 'f32' || isRouter(matrix)) {
    const bytes = take(4 * inFeatures * outFeatures)
    const values = new Float32Array(bytes.buffer, bytes.byteOffset, inFeatures * outFeatures)
    return { place: { kind: 'floats', values }, weights: [floats(`${name}.weight`, [outFeatures, inFeatures], values)] }
  }
  const bytes = (key: string, shape: number[], data: Uint8Array): GraphWeight => ({
    name: `${name}.${key}`,
    type: 'uint8',
    shape,
    data,
  })
  if (isTiled({ weights: format, tiled }, matrix)) {
    const tiles = take(tiledBytes(inFeatures, outFeatures))
    return { place: { kind: 'tiles', tiles }, weights: [bytes('tiles', [tiles.length], tiles)] }
  }
  const bits = matrixBits(format, matrix)
  const blocks = Math.ceil(inFeatures / QUANTISED_BLOCK)
  const quantised = allocateQuantised(outFeatures, inFeatures, bits, take)
  const { weight, scales, zeroPoints } = quantised
  const zeros = zeroPoints === undefined ? [] : [bytes('zeros', [outFeatures, Math.ceil(blocks / 2)], zeroPoints)]
  return {
    place: { kind: 'blocks', matrix: quantised },
    weights: [
      bytes('weight', [outFeatures, blocks, 4 * bits], weight),
      floats(`${name}.scales`, [outFeatures, blocks], scales),
      ...zeros,
    ],
  }
}

async function fillMatrix(source: WeightSource, matrix: MatrixPlan, place: MatrixPlace): Promise<void> {
  const { inFeatures, outFeatures } = matrix
  switch (place.kind) {
    case 'floats':
      await eachRows(source, matrix, (row, values) => place.values.set(values, row * inFeatures))
      break
    case 'blocks':
      await eachRows(source, matrix, (row, values) => quantiseRows(place.matrix, row, values))
      break
    case 'tiles': {
      const quantised = allocateQuantised(outFeatures, inFeatures, 8)
      await eachRows(source, matrix, (row, values) => quantiseRows(quantised, row, values))
      tileRows(inFeatures, outFeatures, quantised.weight, quantised.scales, place.tiles)
      break
    }
    case 'stored':
      throw new RingletError('internal', 'a matrix has no place for numbers as they are stored')
  }
}

function sharedBytes(bytes: number): Uint8Array {
  return new Uint8Array(new SharedArrayBuffer(bytes))
}

function floats(name: string, shape: number[], data: Float32Array): GraphWeight {
  return { name, type: 'float32', shape, data }
}

/** Numbers of a matrix that are held at once in float32 on the way to the graph's format. */
const NUMBERS_AT_ONCE = 1 << 22

/** The rows of all parts in order, multiplied, some at a time; `values` is valid until `take` returns. */
async function eachRows(
  source: WeightSource,
  { parts, inFeatures, multiplier }: MatrixPlan,
  take: (row: number, values: Float32Array) => void,
): Promise<void> {
  let firstRow = 0
  const buffer = new Float32Array(Math.max(1, Math.floor(NUMBERS_AT_ONCE / inFeatures)) * inFeatures)
  for (const part of parts) {
    if (source.readPart === undefined || part.transposed) {
      take(firstRow, multiplyInPlace(await readLinear(source, part), multiplier))
    } else {
      const end = part.outFeatures * inFeatures
      for (let first = 0; first < end; first += buffer.length) {
        const values = buffer.subarray(0, Math.min(buffer.length, end - first))
        await source.readPart(part.weight, first, values)
        take(firstRow + first / inFeatures, multiplyInPlace(values, multiplier))
      }
    }
    firstRow += part.outFeatures
  }
}

/** A module's weight as `[out, in]`, whichever way the checkpoint stores it. */
export async function readLinear(source: WeightSource, linear: LinearSpec): Promise<Float32Array> {
  const stored = await source.readTensor(linear.weight)
  return linear.transposed ? transpose(stored, linear.inFeatures, linear.outFeatures) : stored
}

async function readBias(source: WeightSource, matrix: MatrixPlan): Promise<Float32Array> {
  const bias = sharedFloats(matrix.outFeatures)
  let row = 0
  for (const part of matrix.parts) {
    if (part.bias !== undefined) {
      bias.set(await source.readTensor(part.bias), row)
    }
    row += part.outFeatures
  }
  return multiplyInPlace(bias, matrix.multiplier)
}

export async function makeNorm(source: WeightSource, { name, spec, size }: NormPlan): Promise<GraphWeight[]> {
  const stored = await source.readTensor(spec.weight)
  const weight = floats(`${name}.weight`, [size], spec.addOne ? stored.map((value) => value + 1) : stored)
  return spec.bias === undefined
    ? [weight]
    : [weight, floats(`${name}.bias`, [size], await source.readTensor(spec.bias))]
}

export function ropeWeights(decoder: DecoderSpec): GraphWeight[] {
  return decoder.ropeTables.flatMap((table, i) => ropeWeight(`rope.${i}`, table))
}

/** The table for long sequences follows that for short ones. */
function ropeWeight(name: string, { rotaryDim, positions, cos, sin, long }: RopeTable): GraphWeight[] {
  const half = rotaryDim / 2
  const rows = positions * (long === undefined ? 1 : 2)
  const join = (short: Float32Array, more: Float32Array | undefined): Float32Array => {
    const table = sharedFloats(rows * half)
    table.set(short)
    table.set(more ?? [], more === undefined ? 0 : positions * half)
    return table
  }
  return [
    floats(`${name}.cos`, [rows, half], join(cos, long?.cos)),
    floats(`${name}.sin`, [rows, half], join(sin, long?.sin)),
  ]
}

function transpose(stored: Float32Array, rows: number, columns: number): Float32Array {
  const result = new Float32Array(stored.length)
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      result[c * rows + r] = stored[r * columns + c]!
    }
  }
  return result
}

function multiplyInPlace(values: Float32Array, factor: number): Float32Array {
  if (factor === 1) {
    return values
  }
  for (let i = 0; i < values.length; i++) {
    values[i]! *= factor
  }
  return values
}

function sharedFloats(length: number): Float32Array {
  return new Float32Array(new SharedArrayBuffer(length * 4))
}
