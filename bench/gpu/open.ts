// A device runner for the bench, within a memory plan as a node's.

import { totalmem } from 'node:os'
import { probeCuda } from '../../gpu-node/cuda/cuda-state.ts'
import type { BankSizes } from '../../gpu-node/model/device/bank-layout.ts'
import type { DeviceTarget } from '../../gpu-node/model/device/device-context.ts'
import { deviceNeeds } from '../../gpu-node/model/device/device-needs.ts'
import type { DeviceRunner, DeviceSizes } from '../../gpu-node/model/device/device-runner.ts'
import { deviceModel, openDeviceRunner } from '../../gpu-node/model/device/open-device-runner.ts'
import { describeNeeds, type MemoryLimit, planMemory } from '../../gpu-node/model/runner/memory-plan.ts'
import type { WeightSource } from '../../gpu-node/model/runner/weight-source.ts'
import type { CudaMajor } from '../../gpu-node/ort/cuda-libraries.ts'
import type { GpuBenchSettings } from './settings.ts'

export interface BenchDevice {
  limit: MemoryLimit
  libraryFile: string | undefined
  cuda: CudaMajor
}

/** Fails with the one line that says what CUDA lacks here. */
export async function findDevice({ device, cudaFolder }: GpuBenchSettings): Promise<BenchDevice> {
  if (device.kind === 'cpu') {
    const totalBytes = totalmem()
    return {
      limit: { name: 'RAM', totalBytes, freeBytes: totalBytes, fraction: 0.9 },
      libraryFile: undefined,
      cuda: 13,
    }
  }
  const state = await probeCuda(cudaFolder, [device.deviceId])
  if (state.kind === 'missing') {
    throw new Error(state.why)
  }
  const { name, totalBytes, freeBytes } = state.gpus[0]!
  const limit = { name: `GPU ${device.deviceId} (${name})`, totalBytes, freeBytes, fraction: 0.95 }
  return { limit, libraryFile: state.libraryFile, cuda: state.cuda }
}

export function targetOf(
  { device }: GpuBenchSettings,
  { cuda }: BenchDevice,
  residentLimit: number,
  workspaceLimit: number,
): DeviceTarget {
  return device.kind === 'cpu'
    ? device
    : { kind: 'cuda', deviceId: device.deviceId, cuda, residentLimit, workspaceLimit }
}

export async function openForBench(
  settings: GpuBenchSettings,
  found: BenchDevice,
  checkpoint: WeightSource,
  sizes: DeviceSizes,
  banks: BankSizes,
): Promise<{ runner: DeviceRunner; plan: string; notices: string[] }> {
  const { dtype, threads, graphs } = settings
  const { limit, libraryFile } = found
  const { needs, residentLimit, workspaceLimit } = deviceNeeds(deviceModel(checkpoint.decoder, dtype, banks), sizes)
  const plan = describeNeeds(planMemory(needs, limit))
  const target = targetOf(settings, found, residentLimit, workspaceLimit)
  const notices: string[] = []
  const runner = await openDeviceRunner({
    checkpoint,
    format: dtype,
    target,
    ...(libraryFile === undefined ? {} : { libraryFile }),
    threads,
    sizes,
    banks,
    graphs,
    onNotice: (text) => notices.push(text),
  })
  return { runner, plan, notices }
}
