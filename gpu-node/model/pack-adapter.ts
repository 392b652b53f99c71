/**
 * `LoraAdapter` → `PackedAdapter`: matrices in the graph's layout, constant factors folded in. Pure but for reading base
 * weights (DoRA's norms); runs off the engine's thread. Whatever the graph cannot apply exactly is refused.
 */

import { RingletError } from '../../shared/errors.ts'
import { linearSets } from '../ort/linear-kernel/linear-op.ts'
import { kernelObjection, type PackedGroup, packGroup } from '../ort/lora-kernel/kernel-layout.ts'
import { canRunLoraKernel } from '../ort/lora-kernel/lora-op.ts'
import { packTiled, type TiledGroup, tiledObjection } from '../ort/lora-kernel/tiled-layout.ts'
import type { DecoderSpec } from './decoder-spec.ts'
import { packImage } from './device/adapter-image.ts'
import { isFused, type WeightFormat } from './graph/graph-form.ts'
import { loraInputs } from './graph/graph-names.ts'
import { type MatrixPlan, planMatrices, planWeights } from './graph/weight-plan.ts'
import type { AdapterLayout, LoraAdapter, LoraModule, PackedAdapter, SavedModule } from './packed-adapter.ts'
import { EMBEDDING_A, EMBEDDING_B, EMBEDDING_SAVED, HEAD_SAVED, HEAD_SAVED_BIAS } from './packed-parts.ts'
import type { WeightSource } from './runner/weight-source.ts'
import { readLinear } from './runner/weight-store.ts'

const DEVICE_FLOATS = {
  'device-float16': 'float16',
  'device-bfloat16': 'bfloat16',
  'device-float32': 'float32',
} as const

/** The layout that a node with weights in this format wants. */
export function adapterLayout(weights: WeightFormat, decoder: DecoderSpec): AdapterLayout {
  if (!canRunLoraKernel()) {
    return 'graph'
  }
  if (linearSets().length > 0 && isFused({ weights, tiled: true }, planWeights(decoder))) {
    return 'kernel-tiled'
  }
  return weights === 'f32' ? 'kernel-f32' : 'kernel-int8'
}

/** An adapter of shapes that the kernel does not take is packed for the graph. */
export async function packAdapter(
  adapter: LoraAdapter,
  base: WeightSource,
  layout: AdapterLayout = adapterLayout('f32', base.decoder),
): Promise<PackedAdapter> {
  const { decoder } = base
  const places = findPlaces(decoder)
  const adapted = new Map<MatrixPlan, AdaptedPart[]>()
  const parts: Record<string, Float32Array> = {}
  const features = { embedding: false, head: false, bias: false, magnitude: false }
  for (const module of adapter.modules) {
    if (module.name === decoder.embedding.module) {
      packEmbedding(module, decoder, parts)
      features.embedding = true
      continue
    }
    const place = places.get(module.name)
    if (place === undefined) {
      throw refusal(`the base has no module '${module.name}'`)
    }
    checkShapes(module, place)
    const gain = module.magnitude === undefined ? undefined : await doraGain(module, module.magnitude, place, base)
    const baseBias = await readBaseBias(place, base)
    adapted.set(place.matrix, [...(adapted.get(place.matrix) ?? []), { module, place, gain, baseBias }])
    features.head ||= module.name === decoder.head.module
    features.bias ||= module.loraBias !== undefined
    features.magnitude ||= gain !== undefined
  }
  for (const saved of adapter.savedModules) {
    packSaved(saved, adapter, decoder, parts)
    features.embedding ||= saved.name === decoder.embedding.module
  }
  for (const [matrix, its] of adapted) {
    packExtras(matrix, its, parts)
  }
  if (layout === 'device-float16' || layout === 'device-bfloat16' || layout === 'device-float32') {
    packMatrices(adapted, parts)
    const { digest, maxRank: rank } = adapter
    const floats = DEVICE_FLOATS[layout]
    const image = packImage(planWeights(decoder), { parts, rank, features }, floats)
    return compact({ digest, rank, bytes: 0, parts: image, layout, groups: {}, features })
  }
  const objection = layout === 'kernel-tiled' ? tiledObjection : kernelObjection
  const kernel = layout !== 'graph' && [...adapted].every(([matrix, its]) => fitsKernel(matrix, its, objection))
  const groups = kernel ? packGroups(adapted, layout) : {}
  if (!kernel) {
    packMatrices(adapted, parts)
  }
  const { digest, maxRank: rank } = adapter
  return compact({ digest, rank, bytes: 0, parts, layout: kernel ? layout : 'graph', groups, features })
}

/** A module with what its place in the base adds to it. */
interface AdaptedPart {
  module: LoraModule
  place: Place
  gain: Float32Array | undefined
  baseBias: Float32Array | undefined
}

function fitsKernel(
  matrix: MatrixPlan,
  parts: readonly AdaptedPart[],
  objection: typeof kernelObjection | typeof tiledObjection,
): boolean {
  const segments = parts.map(({ module, place }) => ({ rank: module.rank, outs: place.outs }))
  return objection(matrix.inFeatures, segments) === undefined
}

function packGroups(adapted: ReadonlyMap<MatrixPlan, AdaptedPart[]>, layout: AdapterLayout): PackedAdapter['groups'] {
  const groups: PackedAdapter['groups'] = {}
  for (const [matrix, parts] of adapted) {
    const segments = parts.map(({ module, place, gain }) => ({
      part: place.index,
      rank: module.rank,
      loraA: module.loraA,
      loraB:
        gain === undefined ? module.loraB : module.loraB.map((value, i) => value * gain[Math.floor(i / module.rank)]!),
      scaling: module.scaling * matrix.multiplier,
      outOffset: place.row,
      outs: place.outs,
    }))
    groups[matrix.name] =
      layout === 'kernel-tiled'
        ? packTiled(matrix.inFeatures, segments)
        : packGroup(matrix.inFeatures, segments, layout === 'kernel-f32' ? 'f32' : 'int8')
  }
  return groups
}

function packMatrices(adapted: ReadonlyMap<MatrixPlan, AdaptedPart[]>, parts: PackedAdapter['parts']): void {
  for (const [matrix, its] of adapted) {
    for (const { module, place, gain } of its) {
      const { a, b } = loraInputs(matrix, place.index)
      parts[a] = module.loraA
      parts[b] = transposeB(module, matrix.multiplier, gain)
    }
  }
}

/** Where a module's rows lie in its matrix. */
interface Place {
  matrix: MatrixPlan
  index: number
  row: number
  outs: number
}

function findPlaces(decoder: DecoderSpec): Map<string, Place> {
  const places = new Map<string, Place>()
  for (const matrix of planMatrices(planWeights(decoder))) {
    let row = 0
    for (const [index, part] of matrix.parts.entries()) {
      places.set(part.module, { matrix, index, row, outs: part.outFeatures })
      row += part.outFeatures
    }
  }
  return places
}

function checkShapes({ name, rank, loraA, loraB }: LoraModule, { matrix, index }: Place): void {
  const { inFeatures, outFeatures } = matrix.parts[index]!
  if (rank < 1 || loraA.length !== rank * inFeatures || loraB.length !== rank * outFeatures) {
    const given = `A of ${loraA.length}, B of ${loraB.length} values at rank ${rank}`
    throw refusal(`'${name}' is [${outFeatures}, ${inFeatures}] in the base; the adapter has ${given}`)
  }
}

/** `[out, rank]` → `[rank, out]`, with every factor on its way folded in. */
function transposeB({ loraB, rank, scaling }: LoraModule, multiplier: number, gain?: Float32Array): Float32Array {
  const out = loraB.length / rank
  const packed = new Float32Array(loraB.length)
  for (let n = 0; n < out; n++) {
    const factor = scaling * multiplier * (gain?.[n] ?? 1)
    for (let r = 0; r < rank; r++) {
      packed[r * out + n] = loraB[n * rank + r]! * factor
    }
  }
  return packed
}

/** DoRA: magnitude ÷ row norms of the adapted weight (https://arxiv.org/abs/2402.09353, eq. 5). */
async function doraGain(
  module: LoraModule,
  magnitude: Float32Array,
  { matrix, index }: Place,
  base: WeightSource,
): Promise<Float32Array> {
  const linear = matrix.parts[index]!
  const { inFeatures, outFeatures } = linear
  if (magnitude.length !== outFeatures) {
    throw refusal(`'${module.name}' has ${outFeatures} outputs; its magnitude vector has ${magnitude.length}`)
  }
  const weight = await readLinear(base, linear)
  const { rank, loraA, loraB, scaling } = module
  const row = new Float64Array(inFeatures)
  return magnitude.map((value, n) => {
    row.set(weight.subarray(n * inFeatures, (n + 1) * inFeatures))
    for (let r = 0; r < rank; r++) {
      const factor = scaling * loraB[n * rank + r]!
      for (let k = 0; k < inFeatures; k++) {
        row[k]! += factor * loraA[r * inFeatures + k]!
      }
    }
    const gain = value / Math.sqrt(row.reduce((sum, it) => sum + it * it, 0))
    if (!Number.isFinite(Math.fround(gain))) {
      throw refusal(
        `'${module.name}' has a magnitude of ${value} for output ${n}, whose adapted weights are too small for it`,
      )
    }
    return gain
  })
}

async function readBaseBias({ matrix, index }: Place, base: WeightSource): Promise<Float32Array | undefined> {
  const { bias } = matrix.parts[index]!
  return bias === undefined ? undefined : base.readTensor(bias)
}

/** The graph computes (W·x + b)·gain + shift + delta; DoRA's gain is for W·x alone, lora_bias is scaled as delta is. */
function packExtras(matrix: MatrixPlan, adapted: readonly AdaptedPart[], parts: PackedAdapter['parts']): void {
  if (adapted.every(({ module, gain }) => gain === undefined && module.loraBias === undefined)) {
    return
  }
  const gains = new Float32Array(matrix.outFeatures).fill(1)
  const shifts = new Float32Array(matrix.outFeatures)
  for (const { module, place, gain, baseBias } of adapted) {
    const { scaling, loraBias } = module
    for (let n = 0; n < place.outs; n++) {
      const g = gain?.[n] ?? 1
      gains[place.row + n] = g
      shifts[place.row + n] = matrix.multiplier * ((baseBias?.[n] ?? 0) * (1 - g) + g * scaling * (loraBias?.[n] ?? 0))
    }
  }
  const names = loraInputs(matrix, 0)
  parts[names.gain] = gains
  parts[names.shift] = shifts
}

function packEmbedding(module: LoraModule, decoder: DecoderSpec, parts: Record<string, Float32Array>): void {
  const { name, rank, loraA, loraB, scaling } = module
  const { vocabSize, hiddenSize } = decoder
  if (module.magnitude !== undefined || module.loraBias !== undefined) {
    throw refusal(`DoRA and lora_bias on the embedding '${name}' are not supported`)
  }
  if (loraA.length !== rank * vocabSize || loraB.length !== rank * hiddenSize) {
    const given = `A of ${loraA.length}, B of ${loraB.length} values at rank ${rank}`
    throw refusal(`'${name}' is [${vocabSize}, ${hiddenSize}] in the base; the adapter has ${given}`)
  }
  const a = new Float32Array(loraA.length)
  for (let r = 0; r < rank; r++) {
    for (let token = 0; token < vocabSize; token++) {
      a[token * rank + r] = loraA[r * vocabSize + token]!
    }
  }
  parts[EMBEDDING_A] = a
  parts[EMBEDDING_B] = transposeB({ ...module, loraB, scaling }, 1)
}

function packSaved(
  { name, weight, bias }: SavedModule,
  adapter: LoraAdapter,
  { embedding, head, vocabSize, hiddenSize }: DecoderSpec,
  parts: Record<string, Float32Array>,
): void {
  if (name !== embedding.module && name !== head.module) {
    const served = `'${embedding.module}' and '${head.module}'`
    throw refusal(`modules_to_save: '${name}' is not supported; supported are ${served}`)
  }
  if (weight.length !== vocabSize * hiddenSize) {
    throw refusal(`the saved '${name}' has ${weight.length} values; the base has [${vocabSize}, ${hiddenSize}]`)
  }
  if (adapter.modules.some((module) => module.name === name)) {
    throw refusal(`'${name}' is both saved and adapted`)
  }
  if (name === embedding.module) {
    parts[EMBEDDING_SAVED] = weight
    return
  }
  parts[HEAD_SAVED] = weight
  if (bias !== undefined) {
    parts[HEAD_SAVED_BIAS] = bias
  }
}

function refusal(message: string): RingletError {
  return new RingletError('adapter_refused', message)
}

/** All arrays in one shared buffer: views into an adapter's files would keep those in memory, uncounted. */
function compact(packed: PackedAdapter): PackedAdapter {
  const arrays = new Map<PackedArray, number>()
  let bytes = 0
  const place = (array: PackedArray): void => {
    arrays.set(array, bytes)
    bytes += Math.ceil(array.byteLength / ALIGNMENT) * ALIGNMENT
  }
  Object.values(packed.parts).forEach(place)
  for (const group of Object.values(packed.groups)) {
    eachArray(group, (array) => {
      place(array)
      return array
    })
  }
  const buffer = new SharedArrayBuffer(bytes)
  const move = <T extends PackedArray>(array: T): T => {
    const moved = new (array.constructor as new (b: SharedArrayBuffer, at: number, length: number) => T)(
      buffer,
      arrays.get(array)!,
      array.length,
    )
    moved.set(array)
    return moved
  }
  const parts = Object.fromEntries(Object.entries(packed.parts).map(([name, part]) => [name, move(part)]))
  const groups = Object.fromEntries(
    Object.entries(packed.groups).map(([name, group]) => [name, eachArray(group, move)]),
  )
  return { ...packed, parts, groups, bytes }
}

type PackedArray = Float32Array | Int8Array | Uint8Array

/** The group with what `replace` makes of its arrays. */
function eachArray(
  group: PackedGroup | TiledGroup,
  replace: <T extends PackedArray>(array: T) => T,
): PackedGroup | TiledGroup {
  if ('segments' in group) {
    const segments = group.segments.map((it) => ({ ...it, b: replace(it.b), bScales: replace(it.bScales) }))
    return { ...group, a: replace(group.a), aScales: replace(group.aScales), segments }
  }
  return { ...group, a: replace(group.a), parts: group.parts.map((it) => ({ ...it, b: replace(it.b) })) }
}

/** Of a cache line. */
const ALIGNMENT = 64
