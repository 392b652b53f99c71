/** The engine thread's way to a runner on a GPU: plans its memory, says the plan, loads and prepares. */

import type { LoadProgress } from '../../engine/engine-client.ts'
import type { ModelRunner } from '../../engine/engine-types.ts'
import { openCheckpoint } from '../checkpoint.ts'
import { describeNeeds, type MemoryLimit, planMemory } from '../runner/memory-plan.ts'
import type { BankSizes } from './bank-layout.ts'
import type { DeviceFormat } from './device-form.ts'
import { deviceNeeds } from './device-needs.ts'
import type { DeviceSizes } from './device-runner.ts'
import { deviceModel, openDeviceRunner } from './open-device-runner.ts'

/** Structured-cloneable: crosses a thread's border. */
export interface DevicePartOptions {
  directory: string
  format: DeviceFormat
  deviceId: number
  /** ONNX Runtime beside its CUDA provider. */
  libraryFile: string
  memory: MemoryLimit
  sizes: DeviceSizes
  banks: BankSizes
  graphs: boolean
}

export async function createRunner(
  options: DevicePartOptions,
  onProgress: (progress: LoadProgress) => void,
): Promise<ModelRunner> {
  const { directory, format, deviceId, libraryFile, memory, sizes, banks, graphs } = options
  const checkpoint = await openCheckpoint(directory, { maxPositions: sizes.maxPositions })
  try {
    const { residentLimit, workspaceLimit, needs } = deviceNeeds(deviceModel(checkpoint.decoder, format, banks), sizes)
    const plan = planMemory(needs, memory)
    onProgress({ stage: `${memory.name}: ${describeNeeds(plan)}`, fraction: 0 })
    const runner = await openDeviceRunner({
      checkpoint,
      format,
      target: { kind: 'cuda', deviceId, residentLimit, workspaceLimit },
      libraryFile,
      // The processor only passes commands on.
      threads: 1,
      sizes,
      banks,
      graphs,
      onProgress: (done, total) => onProgress({ stage: 'loading weights', fraction: done / total }),
      onNotice: (text) => onProgress({ stage: text, fraction: 1 }),
    })
    onProgress({ stage: 'preparing the model', fraction: 1 })
    runner.warmUp()
    return runner
  } finally {
    await checkpoint.close()
  }
}
