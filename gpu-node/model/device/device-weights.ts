/** A base model's weights on a device: one copy for all its sessions, brought there tensor by tensor. */

import { RingletError } from '../../../shared/errors.ts'
import type { ElementType, OrtTensor, TensorArray } from '../../ort/tensor.ts'
import { planMatrices, planNorms } from '../graph/weight-plan.ts'
import type { WeightSource } from '../runner/weight-source.ts'
import { makeMatrix, makeNorm, type Progress, ropeWeights } from '../runner/weight-store.ts'
import type { GraphWeight, KeptWeights, WeightCache } from '../weight-cache.ts'
import type { DeviceContext } from './device-context.ts'
import type { DeviceFloats } from './device-form.ts'
import { type DeviceModel, sharesHead } from './device-graph.ts'
import { EMBEDDING_TABLE, POSITION_TABLE } from './device-names.ts'
import { LARGEST, narrow } from './narrow.ts'

export interface DeviceWeights {
  initializers: ReadonlyMap<string, OrtTensor>
  bytes: number
  dispose(): void
}

export async function loadDeviceWeights(
  device: DeviceContext,
  source: WeightSource,
  model: DeviceModel,
  { cache, onProgress = () => {} }: { cache?: WeightCache | undefined; onProgress?: Progress | undefined } = {},
): Promise<DeviceWeights> {
  const initializers = new Map<string, OrtTensor>()
  let bytes = 0
  const total = planMatrices(model.plan).length
  for await (const { weight, done } of makeWeights(source, model, cache)) {
    const { type, data } = inFloats(weight, model.floats)
    const address = device.allocate(data.byteLength)
    device.upload(data, address)
    initializers.set(weight.name, device.tensor(type, weight.shape, address))
    bytes += data.byteLength
    onProgress(Math.min(done, total), total)
  }
  return {
    initializers,
    bytes,
    dispose: () => {
      for (const tensor of initializers.values()) {
        tensor.dispose()
      }
      initializers.clear()
    },
  }
}

/** One at a time: the host never holds more than one matrix in float32. */
async function* makeWeights(
  source: WeightSource,
  model: DeviceModel,
  cache: WeightCache | undefined,
): AsyncGenerator<{ weight: GraphWeight; done: number }> {
  const { decoder, plan, format } = model
  const done = planMatrices(plan).length
  if (cache !== undefined && (format === 'int8' || format === 'int4')) {
    yield* keptWeights(source, model, cache)
  } else {
    yield* layerWeights(source, model)
  }
  for (const weight of ropeWeights(decoder)) {
    yield { weight, done }
  }
  const { vocabSize, hiddenSize, embedding } = decoder
  if (!sharesHead(model)) {
    yield { weight: await readTable(source, EMBEDDING_TABLE, embedding.weight, [vocabSize, hiddenSize]), done }
  }
  if (embedding.positionWeight !== undefined) {
    const shape = [embedding.positionRows!, hiddenSize]
    yield { weight: await readTable(source, POSITION_TABLE, embedding.positionWeight, shape), done }
  }
}

/** Matrices and norms. */
async function* layerWeights(
  source: WeightSource,
  { plan, format }: DeviceModel,
): AsyncGenerator<{ weight: GraphWeight; done: number }> {
  let done = 0
  for (const matrix of planMatrices(plan)) {
    done++
    for (const weight of await makeMatrix(
      source,
      matrix,
      format === 'int8' || format === 'int4' ? format : 'f32',
      false,
    )) {
      yield { weight, done }
    }
  }
  for (const norm of planNorms(plan)) {
    for (const weight of await makeNorm(source, norm)) {
      yield { weight, done }
    }
  }
}

/** The same, as quantised at an earlier start; where there was none, quantised now and kept. */
async function* keptWeights(
  source: WeightSource,
  model: DeviceModel,
  cache: WeightCache,
): AsyncGenerator<{ weight: GraphWeight; done: number }> {
  const { plan } = model
  const count = 4 * planMatrices(plan).length + 2 * planNorms(plan).length
  const make = async (keep: (weight: GraphWeight) => Promise<void>): Promise<void> => {
    for await (const { weight } of layerWeights(source, model)) {
      await keep(weight)
    }
  }
  const kept = (await readChecked(cache)) ?? (await cache.write({ count, make }))
  if (kept === undefined) {
    yield* layerWeights(source, model)
    return
  }
  try {
    for (const [i, weight] of kept.weights.entries()) {
      if (weight.type !== 'bfloat16') {
        yield { weight, done: Math.ceil(((i + 1) * planMatrices(plan).length) / kept.weights.length) }
      }
    }
  } finally {
    kept.dispose()
  }
}

/** A damaged file is no longer there afterwards. */
async function readChecked(cache: WeightCache): Promise<KeptWeights | undefined> {
  const kept = await cache.read()
  try {
    while (kept?.settle()) {
      // Piece by piece.
    }
    return kept
  } catch (error) {
    kept?.dispose()
    if (error instanceof RingletError) {
      return undefined
    }
    throw error
  }
}

async function readTable(source: WeightSource, name: string, tensor: string, shape: number[]): Promise<GraphWeight> {
  return { name, type: 'float32', shape, data: await source.readTensor(tensor) }
}

function inFloats({ name, type, data }: GraphWeight, floats: DeviceFloats): { type: ElementType; data: TensorArray } {
  if (type !== 'float32' || floats === 'float32') {
    return { type, data }
  }
  const halves = new Uint16Array(data.length)
  const overflows = narrow(data as Float32Array, halves, floats)
  if (overflows > 0) {
    throw new RingletError('not_supported', `${overflows} weights of '${name}' are beyond ${LARGEST[floats]}`)
  }
  return { type: floats, data: halves }
}
