/**
 * Reads callers' grammars: specs to EBNF, and EBNF through xgrammar's parser, which aborts on what it does not like. This
 * thread holds no vocabulary and no matcher, so that whatever a caller sends can only ever cost this thread.
 */

import { parentPort, workerData } from 'node:worker_threads'
import { RingletError } from '../../shared/errors.ts'
import type { ReaderData, ReadReply, ReadRequest } from './grammar-messages.ts'
import { readGrammar } from './grammar-spec.ts'
import { loadXgrammar, XgrammarAbort } from './xgrammar.ts'

const { maxHeapBytes } = workerData as ReaderData
const { xgrammar, guard } = loadXgrammar(maxHeapBytes)

async function read({ id, spec }: ReadRequest): Promise<ReadReply> {
  try {
    const grammar = readGrammar(spec)
    await guard(async () => (await xgrammar.Grammar.fromEBNF(grammar.ebnf)).dispose())
    return { id, kind: 'read', grammar }
  } catch (error) {
    if (error instanceof RingletError) {
      return { id, kind: 'refused', message: error.message }
    }
    if (error instanceof RangeError) {
      return { id, kind: 'refused', message: 'the grammar is nested too deeply' }
    }
    return { id, kind: 'aborted', message: error instanceof XgrammarAbort ? error.message : 'it cannot be read' }
  }
}

parentPort?.on('message', (request: ReadRequest) => {
  void read(request).then((reply) => parentPort?.postMessage(reply))
})
parentPort?.postMessage({ id: 0, kind: 'started' } satisfies ReadReply)
