/** A thread that reads packed files for piece-readers.ts. */

import { parentPort } from 'node:worker_threads'
import { DamagedContentError } from './damaged-content.ts'
import { type ReadPiecesJob, readPieces } from './read-pieces.ts'

export type PieceReply = { id: number; outcome: 'read' | 'damaged' } | { id: number; failure: string }

const port = parentPort!

port.on('message', ({ id, job }: { id: number; job: ReadPiecesJob }) => {
  port.postMessage(answer(id, job))
})

function answer(id: number, job: ReadPiecesJob): PieceReply {
  try {
    readPieces(job)
    return { id, outcome: 'read' }
  } catch (error) {
    return error instanceof DamagedContentError ? { id, outcome: 'damaged' } : { id, failure: String(error) }
  }
}
