/**
 * `LoraAdapter` → `PackedAdapter`: matrices in the graph's layout, constant factors folded in. Pure but for reading base
 * weights (DoRA's norms); runs off the engine's thread. Whatever the graph cannot apply exactly is refused.
 */

import { RingletError } from '../../shared/errors.ts'
import type { DecoderSpec } from './decoder-spec.ts'
import { loraInputs } from './graph/graph-names.ts'
import { type MatrixPlan, planMatrices, planWeights } from './graph/weight-plan.ts'
import type { LoraAdapter, LoraModule, PackedAdapter, SavedModule } from './packed-adapter.ts'
import { EMBEDDING_A, EMBEDDING_B, EMBEDDING_SAVED, HEAD_SAVED, HEAD_SAVED_BIAS } from './packed-parts.ts'
import { readLinear, type WeightSource } from './runner/weight-store.ts'

export async function packAdapter(adapter: LoraAdapter, base: WeightSource): Promise<PackedAdapter> {
  const { decoder } = base
  const parts: Record<string, Float32Array> = {}
  const features = { embedding: false, head: false, bias: false, magnitude: false }
  const places = findPlaces(decoder)
  const extras = new Map<MatrixPlan, { gain: Float32Array; shift: Float32Array }>()
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
    const { matrix, index } = place
    const { a, b } = loraInputs(matrix, index)
    const gain = module.magnitude === undefined ? undefined : await doraGain(module, module.magnitude, place, base)
    parts[a] = share(module.loraA)
    parts[b] = transposeB(module, matrix.multiplier, gain)
    features.head ||= module.name === decoder.head.module
    features.bias ||= module.loraBias !== undefined
    features.magnitude ||= gain !== undefined
    if (gain !== undefined || module.loraBias !== undefined) {
      addExtras(extrasOf(extras, matrix), module, place, gain, await readBaseBias(place, base))
    }
  }
  for (const [matrix, { gain, shift }] of extras) {
    const names = loraInputs(matrix, 0)
    parts[names.gain] = gain
    parts[names.shift] = shift
  }
  for (const saved of adapter.savedModules) {
    packSaved(saved, adapter, decoder, parts)
    features.head ||= saved.name === decoder.head.module
    features.embedding ||= saved.name === decoder.embedding.module
  }
  const bytes = Object.values(parts).reduce((sum, part) => sum + part.byteLength, 0)
  return { digest: adapter.digest, rank: adapter.maxRank, bytes, parts, features }
}

/** Where a module's rows lie in its matrix. */
interface Place {
  matrix: MatrixPlan
  index: number
  row: number
}

function findPlaces(decoder: DecoderSpec): Map<string, Place> {
  const places = new Map<string, Place>()
  for (const matrix of planMatrices(planWeights(decoder))) {
    let row = 0
    for (const [index, part] of matrix.parts.entries()) {
      places.set(part.module, { matrix, index, row })
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
  const packed = sharedFloats(loraB.length)
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
    return value / Math.sqrt(row.reduce((sum, it) => sum + it * it, 0))
  })
}

async function readBaseBias({ matrix, index }: Place, base: WeightSource): Promise<Float32Array | undefined> {
  const { bias } = matrix.parts[index]!
  return bias === undefined ? undefined : base.readTensor(bias)
}

function extrasOf(
  extras: Map<MatrixPlan, { gain: Float32Array; shift: Float32Array }>,
  matrix: MatrixPlan,
): { gain: Float32Array; shift: Float32Array } {
  const known = extras.get(matrix)
  if (known !== undefined) {
    return known
  }
  const fresh = { gain: sharedFloats(matrix.outFeatures).fill(1), shift: sharedFloats(matrix.outFeatures) }
  extras.set(matrix, fresh)
  return fresh
}

/** The graph computes (W·x + b)·gain + shift + delta; DoRA's gain is for W·x alone, lora_bias is scaled as delta is. */
function addExtras(
  { gain, shift }: { gain: Float32Array; shift: Float32Array },
  { loraBias, scaling, loraB, rank }: LoraModule,
  { matrix, row }: Place,
  doraGain: Float32Array | undefined,
  baseBias: Float32Array | undefined,
): void {
  const out = loraB.length / rank
  for (let n = 0; n < out; n++) {
    const g = doraGain?.[n] ?? 1
    gain[row + n] = g
    shift[row + n] = matrix.multiplier * ((baseBias?.[n] ?? 0) * (1 - g) + g * scaling * (loraBias?.[n] ?? 0))
  }
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
  const a = sharedFloats(loraA.length)
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
    parts[EMBEDDING_SAVED] = share(weight)
    return
  }
  parts[HEAD_SAVED] = share(weight)
  if (bias !== undefined) {
    parts[HEAD_SAVED_BIAS] = share(bias)
  }
}

function refusal(message: string): RingletError {
  return new RingletError('adapter_refused', message)
}

function share(values: Float32Array): Float32Array {
  if (values.buffer instanceof SharedArrayBuffer) {
    return values
  }
  const shared = sharedFloats(values.length)
  shared.set(values)
  return shared
}

function sharedFloats(length: number): Float32Array {
  return new Float32Array(new SharedArrayBuffer(length * 4))
}
