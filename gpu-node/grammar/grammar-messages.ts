/** What the grammar threads are told and answer. */

import type { MessagePort } from 'node:worker_threads'
import type { GrammarSpec, ReadGrammar } from './grammar-spec.ts'
import type { GrammarVocabulary } from './grammar-vocabulary.ts'
import type { LengthNode } from './length-bounds.ts'

export interface ReaderData {
  maxHeapBytes: number
}

/** Service → reader. */
export interface ReadRequest {
  id: number
  spec: GrammarSpec
}

/** Reader → service. After `aborted` the thread is of no more use. */
export type ReadReply =
  | { id: 0; kind: 'started' }
  | { id: number; kind: 'read'; grammar: ReadGrammar }
  | { id: number; kind: 'refused'; message: string }
  | { id: number; kind: 'aborted'; message: string }

export interface MatcherData {
  vocabulary: GrammarVocabulary
  maxHeapBytes: number
}

/** Service → matcher. */
export type MatcherRequest =
  | { kind: 'engine'; port: MessagePort }
  | { kind: 'compile'; grammarId: string; ebnf: string; lengths: LengthNode | undefined }
  | { kind: 'forget'; grammarId: string }

/** Matcher → service. */
export type MatcherReply = { kind: 'started' } | CompileReply

export type CompileReply =
  | { kind: 'compiled'; grammarId: string; compileMs: number; heapBytes: number }
  | CompileAborted

/** After it the thread is of no more use. */
export interface CompileAborted {
  kind: 'aborted'
  grammarId: string
  message: string
}

/** Engine → matcher. */
export type SequenceMessage =
  | {
      kind: 'begin'
      sequenceId: string
      grammarId: string
      replayTokens: Int32Array
      /** The words of a MaskSlot. */
      slot: Int32Array<SharedArrayBuffer>
    }
  | { kind: 'accept'; sequenceId: string; tokenId: number }
  | { kind: 'end'; sequenceId: string }

/** Matcher → engine: a mask that was found pending may be ready. */
export type SequenceReply = 'ready'

/** Service → engine: which matchers there are. Ids are never used again. */
export type MatcherNews =
  | { kind: 'matcher'; matcherId: number; port: MessagePort }
  | { kind: 'gone'; matcherId: number }

/** Grammar ids name their matcher, so that the engine finds it without asking. */
export function toGrammarId(matcherId: number, serial: number): string {
  return `${matcherId}:${serial}`
}

export function matcherOf(grammarId: string): number {
  return Number(grammarId.split(':')[0])
}
