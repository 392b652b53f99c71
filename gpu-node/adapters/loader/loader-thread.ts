/** A loader thread: takes jobs, one at a time, answers each once. Started by loader-pool.ts. */

import { setPriority } from 'node:os'
import { parentPort, workerData } from 'node:worker_threads'
import { RingletError } from '../../../shared/errors.ts'
import { openCheckpoint } from '../../model/checkpoint.ts'
import { adapterLayout } from '../../model/pack-adapter.ts'
import { DamagedContentError } from './damaged-content.ts'
import { type LoaderInit, type LoaderReady, type LoaderReply, type LoadJob, runLoadJob } from './load-job.ts'
import { Scratch } from './scratch.ts'

/**
 * Streams that run come first, but a load must end: at 10 it took twice as long as at 5, and the streams' pauses were the same
 * (bench/adapters-cold.ts). Beside two engine threads on two cores it has a seventh of the time of one.
 */
const NICENESS = 5
if (process.platform === 'linux') {
  // There 0 is the calling thread, elsewhere the process.
  setPriority(0, NICENESS)
}

const port = parentPort!
const init = workerData as LoaderInit
const base = await openCheckpoint(init.baseDirectory, { maxPositions: 1 })

/** After the last of several loads its memory serves nobody. */
const IDLE_MS = 5_000
const scratch = new Scratch()
let busy = 0

port.on('message', ({ id, job }: { id: number; job: LoadJob }) => {
  busy++
  void answer(id, job).then((reply) => {
    busy--
    port.postMessage(reply)
    idle.refresh()
  })
})
const idle = setTimeout(() => {
  if (busy === 0) {
    scratch.free()
  }
}, IDLE_MS).unref()
const layout = init.adapterLayout ?? adapterLayout('f32', base.decoder)
const ready: LoaderReady = { baseDigest: base.spec.baseDigest, layout }
port.postMessage({ ready })

async function answer(id: number, job: LoadJob): Promise<LoaderReply> {
  try {
    return { id, result: await runLoadJob(job, base, init, scratch) }
  } catch (error) {
    if (error instanceof RingletError) {
      return { id, refusal: { code: error.code, message: error.message } }
    }
    if (error instanceof DamagedContentError) {
      return { id, damaged: true, ...(error.digest === undefined ? {} : { digest: error.digest }) }
    }
    return { id, failure: error instanceof Error ? (error.stack ?? error.message) : String(error) }
  }
}
