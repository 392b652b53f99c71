/** The engine of a node: on the processor, on one GPU, or on several as a group; its memory is planned and said before it loads. */

import { freemem, totalmem } from 'node:os'
import { join } from 'node:path'
import type { NodeConfig } from './config.ts'
import { type CudaState, probeCuda } from './cuda/cuda-state.ts'
import { type ChosenDevice, chooseDevice } from './device-choice.ts'
import type { EngineClient, EngineInit, LoadProgress, ThreadPart } from './engine/engine-client.ts'
import { EngineGroup } from './engine/engine-group.ts'
import { startEngine } from './engine/start-engine.ts'
import type { DecoderSpec } from './model/decoder-spec.ts'
import { deviceNeeds } from './model/device/device-needs.ts'
import type { DevicePartOptions } from './model/device/device-part.ts'
import type { DeviceSizes } from './model/device/device-runner.ts'
import { deviceModel } from './model/device/open-device-runner.ts'
import { planWeights } from './model/graph/weight-plan.ts'
import { adapterLayout } from './model/pack-adapter.ts'
import type { AdapterLayout } from './model/packed-adapter.ts'
import { describeNeeds, planMemory, ramNeeds } from './model/runner/memory-plan.ts'
import { threadModule } from './worker-thread.ts'

/** Prompt tokens of one run on a GPU, and tokens of one whose logits are all wanted: what its workspace is planned for. */
const MAX_CHUNK = 512
const MAX_LOGITS = 64

export interface OpenEngineOptions {
  config: NodeConfig
  directory: string
  decoder: DecoderSpec
  maxPositions: number
  /** One for each engine. */
  masks: () => ThreadPart
  limits: EngineInit['limits']
  say: (line: string) => void
  onProgress: (progress: LoadProgress) => void
}

export interface OpenEngine {
  engine: EngineClient
  dtype: string
  device: 'cpu' | 'cuda'
  adapterLayout: AdapterLayout
}

export async function openEngine(options: OpenEngineOptions): Promise<OpenEngine> {
  const { config, say } = options
  const cuda = await probe(config)
  const chosen = chooseDevice(config.device, config.dtype, cuda.kind === 'ready' ? undefined : cuda.why)
  say(chosen.line)
  return chosen.kind === 'cuda' && cuda.kind === 'ready'
    ? openOnGpus(options, chosen, cuda)
    : openOnProcessor(options, chosen.dtype as Exclude<typeof chosen.dtype, 'f16' | 'bf16'>)
}

/** A node that is to run on the processor does not look at its GPUs. */
async function probe({ device, cudaFolder }: NodeConfig): Promise<CudaState> {
  if (device.kind === 'cpu') {
    return { kind: 'missing', why: 'the processor was asked for' }
  }
  return probeCuda(cudaFolder, device.kind === 'cuda' ? device.deviceIds : [0])
}

async function openOnProcessor(
  { config, directory, decoder, maxPositions, masks, limits, say, onProgress }: OpenEngineOptions,
  dtype: Extract<ChosenDevice, { kind: 'cpu' }>['dtype'],
): Promise<OpenEngine> {
  const needs = ramNeeds({
    decoder,
    plan: planWeights(decoder),
    weights: dtype,
    maxRows: config.maxSequences,
    maxPositions,
    adapterRamBytes: config.adapterRamBytes,
  })
  // KV and adapters grow with use; what the model cannot be loaded without is refused at once.
  const fixed = needs.filter(({ name }) => name === 'weights' || name === 'embeddings')
  planMemory(fixed, { name: 'RAM', totalBytes: totalmem(), freeBytes: totalmem(), fraction: 1 })
  say(`RAM: ${describeNeeds({ needs, total: needs.reduce((sum, { bytes }) => sum + bytes, 0) })}, ${ramState()}`)
  const engine = await startEngine(
    {
      runner: {
        module: threadModule(new URL('./model/runner/runner-part.ts', import.meta.url)),
        options: {
          directory,
          dtype,
          threads: config.threads,
          maxRows: config.maxSequences,
          maxPositions,
          adapterSlots: config.maxEngineAdapters,
          cacheFolder: join(config.stateDir, 'weights'),
        },
      },
      masks: masks(),
      limits,
    },
    { onProgress },
  )
  return { engine, dtype, device: 'cpu', adapterLayout: adapterLayout(dtype, decoder) }
}

function ramState(): string {
  return `${Math.round(freemem() / 2 ** 30)} of ${Math.round(totalmem() / 2 ** 30)} GiB free`
}

async function openOnGpus(
  { config, directory, decoder, maxPositions, masks, limits, say, onProgress }: OpenEngineOptions,
  { deviceIds, dtype }: Extract<ChosenDevice, { kind: 'cuda' }>,
  { libraryFile, cuda, gpus }: Extract<CudaState, { kind: 'ready' }>,
): Promise<OpenEngine> {
  const banks = { slots: config.maxEngineAdapters, maxRank: config.maxAdapterRank }
  const sizes: DeviceSizes = {
    maxRows: config.maxSequences,
    maxPositions,
    maxChunk: Math.min(maxPositions, config.prefillChunk ?? MAX_CHUNK),
    maxLogits: MAX_LOGITS,
  }
  const model = deviceModel(decoder, dtype, banks)
  const { needs, residentLimit, workspaceLimit } = deviceNeeds(model, sizes)
  for (const [i, { name, totalBytes, freeBytes }] of gpus.entries()) {
    const gpu = `GPU ${deviceIds[i]} (${name})`
    const plan = planMemory(needs, { name: gpu, totalBytes, freeBytes, fraction: config.gpuMemoryFraction })
    say(`${gpu}: ${describeNeeds(plan)}`)
  }
  const part = (deviceId: number): DevicePartOptions => ({
    directory,
    format: dtype,
    deviceId,
    cuda,
    libraryFile,
    residentLimit,
    workspaceLimit,
    sizes,
    banks,
    graphs: config.cudaGraphs,
    cacheFolder: join(config.stateDir, 'weights'),
  })
  const module = threadModule(new URL('./model/device/device-part.ts', import.meta.url))
  const engines = await startAll(
    deviceIds.map(
      (deviceId) => () =>
        startEngine({ runner: { module, options: part(deviceId) }, masks: masks(), limits }, { onProgress }),
    ),
  )
  return {
    engine: engines.length === 1 ? engines[0]! : new EngineGroup(engines),
    dtype,
    device: 'cuda',
    adapterLayout: `device-${model.floats}`,
  }
}

/** One after another: each reads the whole checkpoint. Where one cannot start, none is left behind. */
async function startAll(starts: readonly (() => Promise<EngineClient>)[]): Promise<EngineClient[]> {
  const engines: EngineClient[] = []
  try {
    for (const start of starts) {
      engines.push(await start())
    }
    return engines
  } catch (error) {
    await Promise.all(engines.map((engine) => engine.close()))
    throw error
  }
}
