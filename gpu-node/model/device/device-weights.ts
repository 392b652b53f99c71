/** A base model's weights on a device: one copy for all its sessions, brought there tensor by tensor. */

import { narrowToHalves } from '../../formats/to-float16.ts'
import type { ElementType, OrtTensor, TensorArray } from '../../ort/tensor.ts'
import { planMatrices, planNorms } from '../graph/weight-plan.ts'
import { makeMatrix, makeNorm, type Progress, ropeWeights, type WeightSource } from '../runner/weight-store.ts'
import type { GraphWeight } from '../weight-cache.ts'
import type { DeviceContext } from './device-context.ts'
import type { DeviceFloats } from './device-form.ts'
import { type DeviceModel, sharesHead } from './device-graph.ts'
import { EMBEDDING_TABLE, POSITION_TABLE } from './device-names.ts'

export interface DeviceWeights {
  initializers: ReadonlyMap<string, OrtTensor>
  bytes: number
  dispose(): void
}

export async function loadDeviceWeights(
  device: DeviceContext,
  source: WeightSource,
  model: DeviceModel,
  onProgress: Progress = () => {},
): Promise<DeviceWeights> {
  const initializers = new Map<string, OrtTensor>()
  let bytes = 0
  const total = planMatrices(model.plan).length
  for await (const { weight, done } of makeWeights(source, model)) {
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
): AsyncGenerator<{ weight: GraphWeight; done: number }> {
  const { decoder, plan, format } = model
  let done = 0
  for (const matrix of planMatrices(plan)) {
    done++
    const weights = await makeMatrix(source, matrix, format === 'f16' ? 'f32' : format, false)
    for (const weight of weights) {
      yield { weight, done }
    }
  }
  for (const norm of planNorms(plan)) {
    for (const weight of await makeNorm(source, norm)) {
      yield { weight, done }
    }
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

async function readTable(source: WeightSource, name: string, tensor: string, shape: number[]): Promise<GraphWeight> {
  return { name, type: 'float32', shape, data: await source.readTensor(tensor) }
}

function inFloats({ type, data }: GraphWeight, floats: DeviceFloats): { type: ElementType; data: TensorArray } {
  if (type !== 'float32' || floats === 'float32') {
    return { type, data }
  }
  const halves = new Uint16Array(data.length)
  const overflows = narrowToHalves(data as Float32Array, halves)
  if (overflows > 0) {
    throw new RangeError(`${overflows} weights are beyond float16's 65504`)
  }
  return { type: 'float16', data: halves }
}
