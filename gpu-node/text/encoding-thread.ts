/** Encodes long texts, one at a time, with a tokenizer of its own from the same files. */

import { parentPort, workerData } from 'node:worker_threads'
import { createTokenizer } from './tokenizer.ts'
import { readTokenizerFiles } from './tokenizer-files.ts'

export interface EncodingData {
  directory: string
  /** Of the files that the node's own tokenizer was made from. */
  digest: string
}

export interface EncodingRequest {
  text: string
  addSpecialTokens: boolean
}

export type EncodingReply =
  | { kind: 'started' }
  | { kind: 'encoded'; tokens: Int32Array<ArrayBuffer> }
  | { kind: 'failed'; message: string }

const { directory, digest } = workerData as EncodingData
const files = await readTokenizerFiles(directory)
if (files.digest !== digest) {
  throw new Error('the tokenizer’s files have changed since the node started')
}
const tokenizer = createTokenizer(files)

parentPort?.on('message', ({ text, addSpecialTokens }: EncodingRequest) => {
  try {
    const tokens = Int32Array.from(tokenizer.encode(text, addSpecialTokens))
    parentPort?.postMessage({ kind: 'encoded', tokens } satisfies EncodingReply, [tokens.buffer])
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error)
    parentPort?.postMessage({ kind: 'failed', message } satisfies EncodingReply)
  }
})
parentPort?.postMessage({ kind: 'started' } satisfies EncodingReply)
