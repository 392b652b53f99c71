/** A thread that reads packed files for packed-readers.ts. */

import { parentPort } from 'node:worker_threads'
import { DamagedContentError } from './damaged-content.ts'
import { type ReadPackedJob, readPackedPart } from './packed-format.ts'

export type ReaderReply =
  | { id: number; header: string }
  | { id: number; damaged: true }
  | { id: number; failure: string }

const port = parentPort!

port.on('message', ({ id, job }: { id: number; job: ReadPackedJob }) => {
  port.postMessage(answer(id, job))
})

function answer(id: number, job: ReadPackedJob): ReaderReply {
  try {
    const header = readPackedPart(job)
    return { id, header: job.part === 0 ? header : '' }
  } catch (error) {
    return error instanceof DamagedContentError ? { id, damaged: true } : { id, failure: String(error) }
  }
}
