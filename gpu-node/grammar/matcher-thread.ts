/**
 * Compiles grammars for the vocabulary, and matches sequences against those compiled here: after each token the next mask
 * goes into the sequence's slot while the engine runs its step. The service never asks for a compile while sequences run
 * here, since a compile holds the thread for up to seconds.
 */

import { type MessagePort, parentPort, workerData } from 'node:worker_threads'
import type { CompiledGrammar, GrammarMatcher } from '@mlc-ai/web-xgrammar'
import type { MatcherData, MatcherReply, MatcherRequest, SequenceMessage } from './grammar-messages.ts'
import { vocabularyPieces } from './grammar-vocabulary.ts'
import { type GuardPlan, LengthGuard, planGuard } from './length-guard.ts'
import { ENDED, LOST, MaskSlot, READY, REJECTED, type SlotState } from './mask-slot.ts'
import { TokenLengths } from './token-lengths.ts'
import { loadXgrammar, XgrammarAbort } from './xgrammar.ts'

type CompileRequest = Extract<MatcherRequest, { kind: 'compile' }>

interface Compiled {
  grammar: CompiledGrammar
  guard: GuardPlan | undefined
}

interface MatchedSequence {
  matcher: GrammarMatcher
  guard: LengthGuard | undefined
  slot: MaskSlot
  engine: MessagePort
}

const { vocabulary, maxHeapBytes } = workerData as MatcherData
const { xgrammar, guard, heapBytes } = loadXgrammar(maxHeapBytes)
const compiler = await createCompiler()
const stopMask = createStopMask()
let tokenLengths: TokenLengths | undefined
const grammars = new Map<string, Compiled>()
const sequences = new Map<string, MatchedSequence>()
/** xgrammar's calls return promises; one after another keeps the order of the messages. */
let work: Promise<void> = Promise.resolve()

parentPort?.on('message', (request: MatcherRequest) => {
  if (request.kind === 'engine') {
    const engine = request.port
    engine.on('message', (message: SequenceMessage) => then(() => onSequence(message, engine)))
    return
  }
  then(() => (request.kind === 'compile' ? compile(request) : forget(request.grammarId)))
})
reply({ kind: 'started' })

function then(next: () => Promise<void> | void): void {
  // A failure here leaves xgrammar in an unknown state: the thread ends, and the service replaces it.
  work = work.then(next)
}

function reply(message: MatcherReply): void {
  parentPort?.postMessage(message)
}

async function createCompiler() {
  // xgrammar's glue takes byte arrays where its types say strings; they are the only way to name half a character.
  const pieces = vocabularyPieces(vocabulary) as unknown as string[]
  const stops = [...vocabulary.stopTokens]
  const info = await xgrammar.TokenizerInfo.createTokenizerInfo(pieces, 'raw', false, vocabulary.width, stops)
  // Its cache would keep what `forget` gives up.
  const made = await xgrammar.GrammarCompiler.createGrammarCompiler(info, false)
  // The first compile also compiles xgrammar itself: not at a caller's cost.
  ;(await made.compileGrammar('root ::= "a"')).dispose()
  return made
}

async function compile({ grammarId, ebnf, lengths }: CompileRequest): Promise<void> {
  const startedAt = performance.now()
  try {
    const grammar = await guard(() => compiler.compileGrammar(ebnf))
    grammars.set(grammarId, {
      grammar,
      guard: lengths === undefined ? undefined : planGuard(lengths, lengthsOfTokens()),
    })
    reply({ kind: 'compiled', grammarId, compileMs: performance.now() - startedAt, heapBytes: heapBytes() })
  } catch (error) {
    const message = error instanceof XgrammarAbort ? error.message : 'it cannot be compiled'
    reply({ kind: 'aborted', grammarId, message })
  }
}

function forget(grammarId: string): void {
  grammars.get(grammarId)?.grammar.dispose()
  grammars.delete(grammarId)
}

async function onSequence(message: SequenceMessage, engine: MessagePort): Promise<void> {
  switch (message.kind) {
    case 'begin': {
      const slot = new MaskSlot(message.slot)
      const compiled = grammars.get(message.grammarId)
      if (compiled === undefined) {
        publish(slot, engine, LOST)
        return
      }
      const matcher = await xgrammar.GrammarMatcher.createGrammarMatcher(compiled.grammar)
      const lengthGuard = compiled.guard && new LengthGuard(compiled.guard, lengthsOfTokens())
      const sequence = { matcher, guard: lengthGuard, slot, engine }
      sequences.set(message.sequenceId, sequence)
      const fits = message.replayTokens.every((tokenId) => accept(sequence, tokenId))
      publish(slot, engine, fits ? await nextMask(sequence) : REJECTED)
      return
    }
    case 'accept': {
      const sequence = sequences.get(message.sequenceId)
      if (sequence !== undefined) {
        const fits = accept(sequence, message.tokenId)
        publish(sequence.slot, sequence.engine, fits ? await nextMask(sequence) : REJECTED)
      }
      return
    }
    case 'end':
      sequences.get(message.sequenceId)?.matcher.dispose()
      sequences.delete(message.sequenceId)
  }
}

function publish(slot: MaskSlot, engine: MessagePort, state: SlotState): void {
  if (slot.publish(state)) {
    engine.postMessage('ready')
  }
}

function accept({ matcher, guard }: MatchedSequence, tokenId: number): boolean {
  return matcher.acceptToken(tokenId) && guard?.accept(tokenId) !== false
}

async function nextMask({ matcher, guard, slot }: MatchedSequence): Promise<SlotState> {
  if (matcher.isTerminated()) {
    return ENDED
  }
  const mask = await matcher.getNextTokenBitmask()
  guard?.restrict(mask)
  // Only stop tokens are left: the text is complete, and running the model to be told so is a waste. With nothing left at
  // all it is not, and the sampler finds that no token is allowed.
  const mayEnd = vocabulary.stopTokens.length === 0 || mask.some((word, i) => (word & (stopMask[i] ?? 0)) !== 0)
  if (mayEnd && mask.every((word, i) => (word & ~(stopMask[i] ?? 0)) === 0)) {
    return ENDED
  }
  slot.mask.set(mask)
  return READY
}

function lengthsOfTokens(): TokenLengths {
  tokenLengths ??= new TokenLengths(vocabulary)
  return tokenLengths
}

function createStopMask(): Int32Array {
  const mask = new Int32Array(Math.ceil(vocabulary.width / 32))
  for (const tokenId of vocabulary.stopTokens) {
    const word = tokenId >> 5
    mask[word] = (mask[word] ?? 0) | (1 << (tokenId & 31))
  }
  return mask
}
