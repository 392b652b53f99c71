/** What loader threads do, and the messages about it. Everything that parses, hashes or computes runs there. */

import type { ErrorCode } from '../../../shared/errors.ts'
import { RingletError } from '../../../shared/errors.ts'
import type { Checkpoint } from '../../model/checkpoint.ts'
import { packAdapter } from '../../model/pack-adapter.ts'
import type { AdapterLayout, PackedAdapter } from '../../model/packed-adapter.ts'
import { baseWeightsOf } from '../base-weights.ts'
import type { FileVersions } from '../file-version.ts'
import { mergeAdapters } from '../merge/merge.ts'
import type { MergeRecipe } from '../merge/merge-checks.ts'
import { readPeftAdapter } from '../peft.ts'
import type { WeightFileLimits } from '../raw-tensor.ts'
import { DamagedContentError } from './damaged-content.ts'
import { imageOf, type PackedImage } from './packed-format.ts'
import { Scratch } from './scratch.ts'

export type LoadJob =
  /** Reads, checks and packs. `expectDigest`: what this content was before; anything else is damage. */
  | { kind: 'load'; directory: string; expectDigest?: string; versions?: FileVersions }
  /** Reads and checks alone. */
  | { kind: 'identify'; directory: string; versions?: FileVersions }
  /** Parts must be what their digests say: the result is kept under a digest made from these. */
  | { kind: 'merge'; parts: { directory: string; digest: string }[]; recipe: MergeRecipe; digest: string }

export interface LoadResult {
  digest: string
  rank: number
  /** Absent after `identify`. */
  packed?: PackedAdapter | undefined
  /** For its file; absent where it came from one. */
  image?: PackedImage | undefined
  warnings: string[]
}

export interface LoaderInit {
  baseDirectory: string
  /** The name under which the base is served. */
  baseName?: string
  limits: WeightFileLimits
  /** As the engine takes them (`adapterLayout` of gpu-node/model/pack-adapter.ts). */
  adapterLayout?: AdapterLayout | undefined
}

export type LoaderReply =
  | { id: number; result: LoadResult }
  | { id: number; refusal: { code: ErrorCode; message: string } }
  /** The bytes on disk are not those that were stored. */
  | { id: number; damaged: true; digest?: string }
  | { id: number; failure: string }

/** A thread's first message. */
export interface LoaderReady {
  baseDigest: string
  layout: AdapterLayout
}

/** `scratch`: one job's at a time. What a job returns lies outside of it. */
export async function runLoadJob(
  job: LoadJob,
  base: Checkpoint,
  init: LoaderInit,
  scratch = new Scratch(),
): Promise<LoadResult> {
  scratch.reset()
  const read = (directory: string, versions?: FileVersions) =>
    readPeftAdapter(directory, base.spec, {
      baseWeights: baseWeightsOf(base),
      limits: init.limits,
      allocate: scratch.allocate,
      ...(versions === undefined ? {} : { versions }),
      ...(init.baseName === undefined ? {} : { baseName: init.baseName }),
    })
  switch (job.kind) {
    case 'identify': {
      const { adapter, report } = await read(job.directory, job.versions)
      return { digest: adapter.digest, rank: adapter.maxRank, warnings: report.warnings }
    }
    case 'load': {
      const { adapter, report } = await readExpected(job, (directory) => read(directory, job.versions))
      const packed = await packAdapter(adapter, base, init.adapterLayout)
      const { digest, maxRank: rank } = adapter
      return { digest, rank, packed, image: imageOf(packed), warnings: report.warnings }
    }
    case 'merge': {
      const parts = []
      for (const { directory, digest: expectDigest } of job.parts) {
        parts.push((await readExpected({ directory, expectDigest }, read)).adapter)
      }
      const merged = mergeAdapters(parts, job.recipe, job.digest)
      const packed = await packAdapter(merged, base, init.adapterLayout)
      return { digest: job.digest, rank: merged.maxRank, packed, image: imageOf(packed), warnings: [] }
    }
  }
}

async function readExpected(
  job: { directory: string; expectDigest?: string },
  read: (directory: string) => ReturnType<typeof readPeftAdapter>,
): ReturnType<typeof readPeftAdapter> {
  if (job.expectDigest === undefined) {
    return read(job.directory)
  }
  try {
    const found = await read(job.directory)
    if (found.adapter.digest === job.expectDigest) {
      return found
    }
  } catch (error) {
    // It was accepted when it was stored.
    if (!(error instanceof RingletError)) {
      throw error
    }
  }
  const { directory, expectDigest: digest } = job
  throw new DamagedContentError(`the files in ${directory} are not those of ${digest}`, { digest })
}
