/**
 * Makes a model's matrices by as many threads as the machine has cores, this one among them; each takes the next share until
 * none is left.
 */

import { once } from 'node:events'
import { availableParallelism } from 'node:os'
import { startWorkerThread } from '../../worker-thread.ts'
import { countShares, type MatrixWork, RowMaker } from './matrix-rows.ts'

/** What a thread is started with. */
export interface MatrixThreadData {
  works: readonly MatrixWork[]
  /** Words: the next share to take. */
  next: Int32Array<SharedArrayBuffer>
  shares: number
}

/** More read one file no faster. */
const MOST_THREADS = 8
/** A thread costs as much as so many numbers. */
const NUMBERS_A_THREAD = 1 << 24
const PROGRESS_SHARES = 64

export async function makeMatrices(
  works: readonly MatrixWork[],
  onProgress: (done: number, total: number) => void = () => {},
  threads: number = threadsFor(works, availableParallelism()),
): Promise<void> {
  const data = { works, next: new Int32Array(new SharedArrayBuffer(4)), shares: countShares(works) }
  const helpers = Array.from({ length: threads - 1 }, () => startHelper(data))
  // A helper's error is heard of below, after everyone has stopped.
  const ended = Promise.allSettled(helpers)
  let told = 0
  try {
    makeShares(data, (share) => {
      if (share >= told + PROGRESS_SHARES) {
        told = share
        onProgress(share, data.shares)
      }
    })
  } finally {
    await ended
  }
  await Promise.all(helpers)
  onProgress(1, 1)
}

/** Takes shares until there is none; what ends one thread ends all. */
export function makeShares(
  { works, next, shares }: MatrixThreadData,
  onShare: (share: number) => void = () => {},
): void {
  const maker = new RowMaker(works)
  try {
    for (let share = Atomics.add(next, 0, 1); share < shares; share = Atomics.add(next, 0, 1)) {
      maker.make(share)
      onShare(share)
    }
  } catch (error) {
    Atomics.store(next, 0, shares)
    throw error
  }
}

function threadsFor(works: readonly MatrixWork[], cores: number): number {
  const numbers = works.reduce((sum, { rows, columns }) => sum + rows * columns, 0)
  return Math.max(1, Math.min(cores, MOST_THREADS, Math.ceil(numbers / NUMBERS_A_THREAD)))
}

async function startHelper(data: MatrixThreadData): Promise<void> {
  const worker = startWorkerThread(new URL('./matrix-thread.ts', import.meta.url), { workerData: data })
  // `once` rejects with the thread's error.
  const [code] = (await once(worker, 'exit')) as [number]
  if (code !== 0) {
    throw new Error(`a thread that makes weights ended with code ${code}`)
  }
}
