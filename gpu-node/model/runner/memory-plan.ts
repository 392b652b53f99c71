/** What a model will take of a memory, before anything of it is loaded: refused with the numbers where it does not fit. Pure. */

import { RingletError } from '../../../shared/errors.ts'
import type { DecoderSpec } from '../decoder-spec.ts'
import { isTiled, matrixBits, type WeightFormat } from '../graph/graph-form.ts'
import { planMatrices, planNorms, type WeightPlan } from '../graph/weight-plan.ts'
import { QUANTISED_BLOCK } from '../quantise.ts'

export interface MemoryNeed {
  name: string
  bytes: number
  /** What it is made of, e.g. `16 rows of 2048 positions`. */
  of?: string
}

export interface MemoryPlan {
  needs: readonly MemoryNeed[]
  total: number
  /** Bytes that may be used. */
  limit: number
}

export interface MemoryLimit {
  /** `GPU 0 (NVIDIA …)`, `RAM`. */
  name: string
  totalBytes: number
  freeBytes: number
  /** Of the total that may be used. */
  fraction: number
}

/** Throws where the needs exceed what may be used. */
export function planMemory(needs: readonly MemoryNeed[], limit: MemoryLimit): MemoryPlan {
  const total = needs.reduce((sum, { bytes }) => sum + bytes, 0)
  const allowed = Math.floor(Math.min(limit.fraction * limit.totalBytes, limit.freeBytes))
  const plan = { needs, total, limit: allowed }
  if (total > allowed) {
    const has = `${limit.name} has ${gibibytes(limit.totalBytes)}, ${gibibytes(limit.freeBytes)} free`
    const may = `${gibibytes(allowed)} may be used (fraction ${limit.fraction})`
    throw new RingletError(
      'field_invalid',
      `the model does not fit: ${describeNeeds(plan)}; ${has}, ${may}. Fewer --max-sequences, --max-positions or --max-engine-adapters take less`,
    )
  }
  return plan
}

/** One line: `1.2 GiB = weights 0.8 + KV 0.3 (16 rows …) + …`. */
export function describeNeeds({ needs, total }: Pick<MemoryPlan, 'needs' | 'total'>): string {
  const parts = needs.map(({ name, bytes, of }) => {
    return `${name} ${gibibytes(bytes)}${of === undefined ? '' : ` (${of})`}`
  })
  return `${gibibytes(total)} = ${parts.join(' + ')}`
}

export function gibibytes(bytes: number): string {
  const gibi = bytes / 2 ** 30
  return gibi >= 0.095 ? `${gibi.toFixed(gibi >= 100 ? 0 : 1)} GiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`
}

/** Bytes of matrices, norms and rotary tables as the graph holds them; `floatBytes`: of whatever is not quantised. */
export function weightBytes(
  decoder: DecoderSpec,
  plan: WeightPlan,
  weights: WeightFormat,
  floatBytes: number,
  tiled = false,
): number {
  const matrices = planMatrices(plan).map((matrix) => {
    const { name, inFeatures, outFeatures, hasBias } = matrix
    const bias = hasBias ? outFeatures * floatBytes : 0
    if (weights === 'f32' || name.endsWith('.router')) {
      return inFeatures * outFeatures * floatBytes + bias
    }
    const blocks = Math.ceil(inFeatures / QUANTISED_BLOCK)
    const bits = matrixBits(weights, matrix)
    const zeros = bits === 4 ? outFeatures * Math.ceil(blocks / 2) : 0
    // In tiles a matrix has the same numbers and scales.
    const scaleBytes = isTiled({ weights, tiled }, matrix) ? 4 : floatBytes
    return outFeatures * blocks * (4 * bits + scaleBytes) + zeros + bias
  })
  const norms = planNorms(plan).map(({ size, spec }) => size * (spec.bias === undefined ? 1 : 2) * floatBytes)
  const rope = decoder.ropeTables.map((table) => {
    return table.positions * (table.long === undefined ? 1 : 2) * table.rotaryDim * floatBytes
  })
  return [...matrices, ...norms, ...rope].reduce((sum, bytes) => sum + bytes, 0)
}

/** Keys and values of every layer. */
export function kvBytes(decoder: DecoderSpec, rows: number, positions: number, floatBytes: number): number {
  return 2 * decoder.layers.length * rows * decoder.kvHeads * positions * decoder.headSize * floatBytes
}

export interface RamPlanOptions {
  decoder: DecoderSpec
  plan: WeightPlan
  weights: WeightFormat
  maxRows: number
  maxPositions: number
  adapterRamBytes: number
}

/** The processor's: KV is touched, and so taken, only as far as sequences reach. Token embeddings are held beside the graph. */
export function ramNeeds({
  decoder,
  plan,
  weights,
  maxRows,
  maxPositions,
  adapterRamBytes,
}: RamPlanOptions): MemoryNeed[] {
  const { vocabSize, hiddenSize } = decoder
  return [
    { name: 'weights', bytes: weightBytes(decoder, plan, weights, 4, true) },
    // bfloat16 in most checkpoints.
    { name: 'embeddings', bytes: vocabSize * hiddenSize * 2 },
    {
      name: 'KV',
      bytes: kvBytes(decoder, maxRows, maxPositions, 4),
      of: `at most, ${maxRows} rows of ${maxPositions} positions`,
    },
    { name: 'adapters', bytes: adapterRamBytes, of: 'at most' },
  ]
}
