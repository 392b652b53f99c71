/** The initializers of a base model: read from the checkpoint once, brought into the graph's layout, shared by all sessions. */

import type { OrtEnvironment } from '../../ort/environment.ts'
import { tileMatrix } from '../../ort/linear-kernel/linear-layout.ts'
import { HugeArena } from '../../ort/system-memory.ts'
import { OrtTensor } from '../../ort/tensor.ts'
import type { DecoderSpec, LinearSpec, RopeTable } from '../decoder-spec.ts'
import { isTiled, matrixBits, type WeightFormat } from '../graph/graph-form.ts'
import { type MatrixPlan, type NormPlan, planMatrices, planNorms, type WeightPlan } from '../graph/weight-plan.ts'
import { allocateQuantised, QUANTISED_BLOCK, quantiseRows } from '../quantise.ts'
import type { CachedWeight, GraphWeight, KeptWeights, WeightCache } from '../weight-cache.ts'
import { type EmbeddingTable, readEmbeddingTable } from './token-embedding.ts'

/** What is needed of a checkpoint. */
export interface WeightSource {
  readonly decoder: DecoderSpec
  readTensor(name: string): Promise<Float32Array>
  /** `out.length` numbers of a tensor from element `first` on; sources without it are read a tensor at a time. */
  readPart?(name: string, first: number, out: Float32Array): Promise<Float32Array>
  /** The tensor as stored, if that is bfloat16. */
  readBfloat16?(name: string): Promise<Uint16Array | undefined>
}

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
  dispose(): void
}

export async function loadWeights(
  environment: OrtEnvironment,
  source: WeightSource,
  plan: WeightPlan,
  format: WeightFormat,
  options: LoadOptions = {},
): Promise<WeightStore> {
  const held = await readOrMakeWeights(source, plan, format, options)
  const initializers = new Map<string, OrtTensor>()
  let bytes = 0
  let embedding: EmbeddingTable | undefined
  for (const weight of [...held.weights, ...ropeWeights(source.decoder)]) {
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
    settle: held.settle,
    dispose: () => {
      for (const tensor of initializers.values()) {
        tensor.dispose()
      }
      initializers.clear()
      held.dispose()
    },
  }
}

/** In the cache. */
const EMBEDDING = 'embedding.table'

type EmbeddingWeight = CachedWeight & { data: EmbeddingTable }

function isEmbedding(weight: CachedWeight): weight is EmbeddingWeight {
  return weight.name === EMBEDDING
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
  const kept = await cache?.write({
    count: 4 * planMatrices(plan).length + 2 * planNorms(plan).length + 1,
    rare: EMBEDDING,
    make: async (keep) => {
      await makeWeights(source, plan, format, options, keep)
      await keep(await embeddingWeight(source))
    },
  })
  return kept ?? makeInMemory(source, plan, format, options)
}

async function makeInMemory(
  source: WeightSource,
  plan: WeightPlan,
  format: WeightFormat,
  options: LoadOptions,
): Promise<KeptWeights> {
  const arena = new HugeArena()
  const weights: GraphWeight[] = []
  await makeWeights(source, plan, format, options, async (weight) => {
    weights.push(copyInto(arena, weight))
  })
  return { weights, settle: () => false, dispose: () => arena.dispose() }
}

async function makeWeights(
  source: WeightSource,
  plan: WeightPlan,
  format: WeightFormat,
  { tiled = false, onProgress = () => {} }: LoadOptions,
  keep: (weight: GraphWeight) => Promise<void>,
): Promise<void> {
  const matrices = planMatrices(plan)
  for (const [i, matrix] of matrices.entries()) {
    for (const weight of await makeMatrix(source, matrix, format, tiled)) {
      await keep(weight)
    }
    onProgress(i + 1, matrices.length)
  }
  for (const norm of planNorms(plan)) {
    for (const weight of await makeNorm(source, norm)) {
      await keep(weight)
    }
  }
}

async function embeddingWeight(source: WeightSource): Promise<CachedWeight> {
  const { vocabSize, hiddenSize } = source.decoder
  const place = { name: EMBEDDING, shape: [vocabSize, hiddenSize] }
  const data = await readEmbeddingTable(source)
  return data instanceof Float32Array ? { ...place, type: 'float32', data } : { ...place, type: 'bfloat16', data }
}

function copyInto(arena: HugeArena, weight: GraphWeight): GraphWeight {
  const { buffer, byteOffset, byteLength } = weight.data
  const place = arena.take(byteLength)
  place.set(new Uint8Array(buffer, byteOffset, byteLength))
  const data = weight.type === 'float32' ? new Float32Array(place.buffer, place.byteOffset, byteLength / 4) : place
  return { ...weight, data }
}

export async function makeMatrix(
  source: WeightSource,
  matrix: MatrixPlan,
  format: WeightFormat,
  tiled: boolean,
): Promise<GraphWeight[]> {
  const { name, inFeatures, outFeatures, hasBias } = matrix
  const bias = hasBias ? [floats(`${name}.bias`, [outFeatures], await readBias(source, matrix))] : []
  if (format === 'f32' || name.endsWith('.router')) {
    return [floats(`${name}.weight`, [outFeatures, inFeatures], await readMatrix(source, matrix)), ...bias]
  }
  const bits = matrixBits(format, matrix)
  const quantised = allocateQuantised(outFeatures, inFeatures, bits)
  await eachRows(source, matrix, (row, values) => quantiseRows(quantised, row, values))
  if (isTiled({ weights: format, tiled }, matrix)) {
    const data = tileMatrix(inFeatures, outFeatures, quantised.weight, quantised.scales)
    return [{ name: `${name}.tiles`, type: 'uint8', shape: [data.length], data }, ...bias]
  }
  const blocks = Math.ceil(inFeatures / QUANTISED_BLOCK)
  const bytes = (key: string, shape: number[], data: Uint8Array): GraphWeight => ({
    name: `${name}.${key}`,
    type: 'uint8',
    shape,
    data,
  })
  const { weight, scales, zeroPoints } = quantised
  const zeros = zeroPoints === undefined ? [] : [bytes('zeros', [outFeatures, Math.ceil(blocks / 2)], zeroPoints)]
  return [
    bytes('weight', [outFeatures, blocks, 4 * bits], weight),
    floats(`${name}.scales`, [outFeatures, blocks], scales),
    ...zeros,
    ...bias,
  ]
}

function floats(name: string, shape: number[], data: Float32Array): GraphWeight {
  return { name, type: 'float32', shape, data }
}

/** `[out, in]` of all parts, multiplied. */
async function readMatrix(source: WeightSource, matrix: MatrixPlan): Promise<Float32Array> {
  const weight = sharedFloats(matrix.inFeatures * matrix.outFeatures)
  await eachRows(source, matrix, (row, values) => weight.set(values, row * matrix.inFeatures))
  return weight
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
