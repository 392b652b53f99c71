/** The engine thread's way to a runner on a GPU: loads the model within the memory that was planned for it. */

import type { LoadProgress } from '../../engine/engine-client.ts'
import type { ModelRunner } from '../../engine/engine-types.ts'
import type { CudaMajor } from '../../ort/cuda-libraries.ts'
import { openCheckpoint } from '../checkpoint.ts'
import type { BankSizes } from './bank-layout.ts'
import type { DeviceFormat } from './device-form.ts'
import type { DeviceSizes } from './device-runner.ts'
import { openDeviceRunner } from './open-device-runner.ts'

/** Structured-cloneable: crosses a thread's border. */
export interface DevicePartOptions {
  directory: string
  format: DeviceFormat
  deviceId: number
  /** For which the provider was built. */
  cuda: CudaMajor
  /** ONNX Runtime beside its CUDA provider. */
  libraryFile: string
  /** As planned (device-needs.ts). */
  residentLimit: number
  workspaceLimit: number
  sizes: DeviceSizes
  banks: BankSizes
  graphs: boolean
  /** Where quantised weights are kept for the next start. */
  cacheFolder: string
}

export async function createRunner(
  options: DevicePartOptions,
  onProgress: (progress: LoadProgress) => void,
): Promise<ModelRunner> {
  const { directory, format, deviceId, cuda, libraryFile, sizes, banks, graphs } = options
  const { residentLimit, workspaceLimit, cacheFolder } = options
  const checkpoint = await openCheckpoint(directory, { maxPositions: sizes.maxPositions })
  try {
    const { spec, stamp } = checkpoint
    const runner = await openDeviceRunner({
      checkpoint,
      weightCache: { folder: cacheFolder, baseDigest: spec.baseDigest, stamp },
      format,
      target: { kind: 'cuda', deviceId, cuda, residentLimit, workspaceLimit },
      libraryFile,
      // The processor only passes commands on.
      threads: 1,
      sizes,
      banks,
      graphs,
      onProgress: (done, total) => onProgress({ stage: 'loading weights', fraction: done / total }),
      onNotice: (text) => onProgress({ stage: text, fraction: 1 }),
    })
    try {
      onProgress({ stage: 'preparing the model', fraction: 1 })
      runner.warmUp()
      return runner
    } catch (error) {
      runner.dispose()
      throw error
    }
  } finally {
    await checkpoint.close()
  }
}
