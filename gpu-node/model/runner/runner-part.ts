/** The engine thread's way to a runner: opens the checkpoint, loads it, and makes the sessions that every node needs at once. */

import type { LoadProgress } from '../../engine/engine-client.ts'
import type { ModelRunner } from '../../engine/engine-types.ts'
import { openCheckpoint } from '../checkpoint.ts'
import type { WeightFormat } from '../graph/graph-form.ts'
import { createOrtRunner } from './ort-runner.ts'

/** Structured-cloneable: crosses a thread's border. */
export interface RunnerPartOptions {
  directory: string
  dtype: WeightFormat
  threads: number
  maxRows: number
  maxPositions: number
  adapterSlots: number
  /** Where quantised weights are kept for the next start. */
  cacheFolder?: string
}

export async function createRunner(
  options: RunnerPartOptions,
  onProgress: (progress: LoadProgress) => void,
): Promise<ModelRunner> {
  const { directory, cacheFolder, ...sizes } = options
  const checkpoint = await openCheckpoint(directory, { maxPositions: options.maxPositions })
  try {
    const { spec, stamp } = checkpoint
    const runner = await createOrtRunner({
      ...sizes,
      checkpoint,
      ...(cacheFolder === undefined
        ? {}
        : { weightCache: { folder: cacheFolder, baseDigest: spec.baseDigest, stamp } }),
      onProgress: (done, total) => onProgress({ stage: 'loading weights', fraction: done / total }),
    })
    onProgress({ stage: 'preparing the model', fraction: 1 })
    runner.warmUp()
    return runner
  } finally {
    await checkpoint.close()
  }
}
