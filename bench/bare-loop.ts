// The runner's decode graph without the runner: everything bound once, then nothing but RunWithBinding.

import { buildDecoderGraph } from '../gpu-node/model/graph/decoder-graph.ts'
import type { WeightFormat } from '../gpu-node/model/graph/graph-form.ts'
import { planWeights } from '../gpu-node/model/graph/weight-plan.ts'
import { KernelKvCache } from '../gpu-node/model/runner/kernel-kv-cache.ts'
import { installKernels } from '../gpu-node/model/runner/kernels.ts'
import { GroupQueryKvCache } from '../gpu-node/model/runner/kv-cache.ts'
import { StepIo } from '../gpu-node/model/runner/step-io.ts'
import type { WeightSource } from '../gpu-node/model/runner/weight-source.ts'
import { loadWeights } from '../gpu-node/model/runner/weight-store.ts'
import { OrtBinding } from '../gpu-node/ort/binding.ts'
import { OrtEnvironment } from '../gpu-node/ort/environment.ts'
import { OrtSession } from '../gpu-node/ort/session.ts'

export interface BareLoopOptions {
  source: WeightSource
  dtype: WeightFormat
  threads: number
  maxRows: number
  maxPositions: number
  /** Filled positions of every row. */
  position: number
}

/** By batch size: one decode step of base rows. */
export async function createBareLoop(options: BareLoopOptions): Promise<(rows: number) => void> {
  const { source, dtype, maxRows, maxPositions, position } = options
  const { decoder } = source
  const environment = new OrtEnvironment(options.threads)
  const plan = planWeights(decoder)
  const kernels = installKernels(environment.library, decoder, plan, dtype)
  const { tiled, domain } = kernels
  const kv = kernels.kv === undefined ? undefined : { format: kernels.kv, positions: maxPositions }
  const { initializers } = await loadWeights(environment, source, plan, dtype, { tiled })
  const form = { weights: dtype, lora: 'none', extras: false, head: false, tiled, kv } as const
  const model = buildDecoderGraph(decoder, plan, form)
  const session = new OrtSession(environment, {
    model,
    initializers,
    customOps: domain === undefined ? [] : [domain],
  })
  const cache =
    kv === undefined
      ? new GroupQueryKvCache(environment, decoder, maxRows, maxPositions)
      : new KernelKvCache(environment, decoder, kv, maxRows)
  const { hiddenSize, vocabSize } = decoder
  const io = new StepIo(environment, {
    hiddenSize,
    vocabSize,
    tokens: maxRows,
    logits: maxRows,
    usesPositionIds: false,
  })
  io.embeddings.fill(0.1)
  for (let row = 0; row < maxRows; row++) {
    io.setLastPosition(row, position)
    io.setToken(row, row, position, position)
  }
  const bindings = new Map<number, OrtBinding>()
  return (rows) => {
    let binding = bindings.get(rows)
    const shape = { first: 0, rows, tokens: 1, hidden: rows, logits: rows }
    io.prepare(shape, position + 1)
    if (binding === undefined) {
      binding = new OrtBinding(environment, session)
      io.bind(binding, shape, form)
      cache.bind(binding, 0, rows)
      bindings.set(rows, binding)
    }
    binding.run()
  }
}
