/** From a checkpoint to a runner on a device: plans its memory, refuses what does not fit, loads the weights. */

import { createHash } from 'node:crypto'
import { RingletError } from '../../../shared/errors.ts'
import { OrtEnvironment } from '../../ort/environment.ts'
import { planWeights } from '../graph/weight-plan.ts'
import type { WeightSource } from '../runner/weight-source.ts'
import type { Progress } from '../runner/weight-store.ts'
import { type WeightCache, weightCache } from '../weight-cache.ts'
import type { BankSizes } from './bank-layout.ts'
import { DeviceContext, type DeviceTarget } from './device-context.ts'
import type { DeviceFloats, DeviceFormat } from './device-form.ts'
import type { DeviceModel } from './device-graph.ts'
import { DeviceRunner, type DeviceSizes } from './device-runner.ts'
import { loadDeviceWeights } from './device-weights.ts'

export interface OpenDeviceOptions {
  checkpoint: WeightSource
  format: DeviceFormat
  /** Halves, unless the format is f32. */
  floats?: DeviceFloats
  target: DeviceTarget
  /** Of ONNX Runtime; absent: onnxruntime-node's, which has no CUDA. */
  libraryFile?: string
  threads: number
  sizes: DeviceSizes
  banks: BankSizes
  graphs: boolean
  /** Where int8 and int4 weights are kept for the next start, and what tells this base from others. */
  weightCache?: { folder: string; baseDigest: string; stamp: string; onMiss?: (why: string) => void }
  onProgress?: Progress
  onNotice?: (text: string) => void
}

export function deviceModel(
  decoder: WeightSource['decoder'],
  format: DeviceFormat,
  banks: BankSizes,
  floats: DeviceModel['floats'] = format === 'f32' ? 'float32' : format === 'bf16' ? 'bfloat16' : 'float16',
): DeviceModel {
  return { decoder, plan: planWeights(decoder), format, floats, banks }
}

export async function openDeviceRunner(options: OpenDeviceOptions): Promise<DeviceRunner> {
  const { checkpoint, format, target, sizes, banks } = options
  const { decoder } = checkpoint
  if (sizes.maxPositions > decoder.maxPositions) {
    const limit = `the model has ${decoder.maxPositions}`
    throw new RingletError('field_invalid', `${sizes.maxPositions} positions are asked for; ${limit}`)
  }
  const model = deviceModel(decoder, format, banks, options.floats)
  checkFloats(model, target)
  const environment = new OrtEnvironment(options.threads, options.libraryFile)
  // In the order in which they are given back where opening fails: what stays of a GPU's memory would be the next one's.
  const held: { dispose(): void }[] = [environment]
  try {
    const device = new DeviceContext(environment, target)
    held.unshift(device)
    const weights = await loadDeviceWeights(device, checkpoint, model, {
      cache: openCache(options, model),
      onProgress: options.onProgress,
    })
    held.unshift(weights)
    const { graphs, onNotice } = options
    return new DeviceRunner({ device, model, weights, sizes, graphs, ...(onNotice === undefined ? {} : { onNotice }) })
  } catch (error) {
    for (const it of held) {
      it.dispose()
    }
    throw error
  }
}

function checkFloats({ decoder, floats }: DeviceModel, target: DeviceTarget): void {
  if (floats !== 'bfloat16') {
    return
  }
  if (target.kind === 'cpu') {
    throw new RingletError('not_supported', 'ONNX Runtime has no bfloat16 kernels for the processor')
  }
  if (decoder.layers.some(({ mlp }) => mlp.kind === 'moe')) {
    const why = 'its CUDA provider has no TopK in bfloat16, which chooses the experts'
    throw new RingletError('not_supported', `--dtype bf16 is not for mixtures of experts in ONNX Runtime 1.29: ${why}`)
  }
}

function openCache({ weightCache: place }: OpenDeviceOptions, { plan, format }: DeviceModel): WeightCache | undefined {
  if (place === undefined) {
    return undefined
  }
  const { folder, baseDigest, stamp, onMiss } = place
  const layout = createHash('sha256').update(JSON.stringify(plan)).digest('hex')
  return weightCache(folder, { baseDigest, stamp, format: `device-${format}`, layout }, onMiss)
}
