/** What a device runner takes of its GPU, and how that is shared out among its allocators. Pure. */

import { planMatrices } from '../graph/weight-plan.ts'
import { QUANTISED_BLOCK } from '../quantise.ts'
import { kvBytes, type MemoryNeed, weightBytes } from '../runner/memory-plan.ts'
import { bankElements, imageElements } from './bank-layout.ts'
import { FLOAT_BYTES } from './device-form.ts'
import { type DeviceModel, sharesHead } from './device-graph.ts'
import { shortlistBytes } from './device-logits.ts'
import type { DeviceSizes } from './device-runner.ts'
import { MAX_CAPTURES } from './graph-captures.ts'

/** Sessions that hold memory of their own: of the forms none, gather and window, a rarer one, and of the sampler. */
const SESSIONS = 6
/** cuBLAS and attention take this for themselves in each session. */
const LIBRARY_BYTES = 96 * 2 ** 20
/** The driver's context, code of the provider and cuDNN. */
const CONTEXT_BYTES = 600 * 2 ** 20
/** Captured runs: a few MiB each, taken by the driver. */
const CAPTURE_BYTES = 2 * MAX_CAPTURES * 4 * 2 ** 20
/** Allocators round and fragment. */
const SLACK = 1.3

export interface DeviceNeeds {
  needs: MemoryNeed[]
  /** Bytes of everything that stays. */
  residentLimit: number
  /** Bytes that one session may use while it runs. */
  workspaceLimit: number
}

export function deviceNeeds(model: DeviceModel, sizes: DeviceSizes): DeviceNeeds {
  const { decoder, plan, format, floats, banks } = model
  const floatBytes = FLOAT_BYTES[floats]
  const { maxRows, maxPositions } = sizes
  const { vocabSize, hiddenSize, embedding } = decoder
  const graphWeights = format === 'int8' || format === 'int4' ? format : 'f32'
  const tables =
    (sharesHead(model) ? 0 : vocabSize * hiddenSize) +
    (embedding.positionWeight === undefined ? 0 : embedding.positionRows! * hiddenSize)
  const weights = weightBytes(decoder, plan, graphWeights, floatBytes) + tables * floatBytes
  const kv = kvBytes(decoder, maxRows, maxPositions, floatBytes)
  // The slots, and where an adapter arrives.
  const adapters = (bankElements(plan, banks) + imageElements(plan, banks.maxRank, true)) * floatBytes
  const sampling = shortlistBytes(vocabSize, Math.max(sizes.maxLogits, maxRows))
  const steps = stepBytes(model, sizes) + sampling.resident
  const workspace = Math.max(workspaceBytes(model, sizes), sampling.workspace)
  const workspaceLimit = Math.ceil(SLACK * (workspace + LIBRARY_BYTES))
  return {
    needs: [
      { name: 'weights', bytes: weights },
      { name: 'KV', bytes: kv, of: `${maxRows} rows of ${maxPositions} positions` },
      { name: 'adapters', bytes: adapters, of: `${banks.slots} slots of rank ${banks.maxRank}` },
      { name: 'workspace', bytes: steps + SESSIONS * workspaceLimit + CONTEXT_BYTES + CAPTURE_BYTES },
    ],
    residentLimit: Math.ceil(1.02 * (weights + kv + adapters + steps)) + LIBRARY_BYTES,
    workspaceLimit,
  }
}

/** Inputs and outputs of steps: float32 logits and hidden states, and integers by token. */
function stepBytes({ decoder }: DeviceModel, { maxChunk, maxRows, maxLogits }: DeviceSizes): number {
  const tokens = Math.max(maxChunk, maxRows)
  return 4 * (Math.max(maxLogits, maxRows) * decoder.vocabSize + tokens * (2 * decoder.hiddenSize + 64)) + 2 ** 20
}

/** What lives at once between two operators, at its largest: of a prompt's chunk, of its logits, and of gathered adapters. */
function workspaceBytes(model: DeviceModel, { maxChunk, maxRows, maxLogits }: DeviceSizes): number {
  const { decoder, plan, floats, banks } = model
  const floatBytes = FLOAT_BYTES[floats]
  const tokens = Math.max(maxChunk, maxRows)
  const inner = Math.max(
    ...plan.layers.map(({ qkv, mlp }) => {
      const up = mlp.kind === 'gated' ? mlp.gateUp : mlp.kind === 'plain' ? mlp.up : mlp.experts[0]!.gateUp
      return Math.max(2 * qkv.outFeatures, 2.5 * up.outFeatures)
    }),
  )
  const activations = tokens * (3 * decoder.hiddenSize + inner) * floatBytes
  const logits = Math.max(maxLogits, maxRows) * decoder.vocabSize * (floatBytes + 4)
  const ranks = banks.slots * banks.maxRank
  const gathered = (plan: DeviceModel['plan']) =>
    Math.max(
      ...plan.layers.flatMap(({ qkv, o, mlp }) => {
        const matrices = mlp.kind === 'gated' ? [qkv, o, mlp.gateUp, mlp.down] : [qkv, o]
        return matrices.map(({ parts, inFeatures, outFeatures }) => parts.length * (inFeatures + outFeatures + tokens))
      }),
    ) *
    (ranks / 2)
  return activations + logits + gathered(plan) * floatBytes + unpackedBytes(model)
}

/** Of a matrix's rows that ONNX Runtime unpacks at once, where the matrix has more than twice as many and takes more than 256 MiB. */
const UNPACKED_ROWS = 32_768
const UNPACKED_WHOLE_BYTES = 256 * 2 ** 20

/** ONNX Runtime's CUDA MatMulNBits unpacks a matrix to halves for each product of more than one token. */
function unpackedBytes({ plan, format, floats }: DeviceModel): number {
  if (format !== 'int8' && format !== 'int4') {
    return 0
  }
  const quantised = planMatrices(plan).filter((matrix) => !matrix.name.endsWith('.router'))
  const sizes = quantised.map(({ inFeatures, outFeatures }) => {
    const row = Math.ceil(inFeatures / QUANTISED_BLOCK) * QUANTISED_BLOCK * FLOAT_BYTES[floats]
    const inParts = outFeatures > 2 * UNPACKED_ROWS && outFeatures * row > UNPACKED_WHOLE_BYTES
    return (inParts ? UNPACKED_ROWS : outFeatures) * row
  })
  return Math.max(...sizes)
}
