/** A thread that helps to make a model's matrices, and ends when none is left. */

import { workerData } from 'node:worker_threads'
import { type MatrixThreadData, makeShares } from './make-matrices.ts'

makeShares(workerData as MatrixThreadData)
