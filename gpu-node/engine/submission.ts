/** May this sequence be queued? Pure checks of a submission against what the model and the engine can do. */

import { RingletError } from '../../shared/errors.ts'
import type { PackedAdapter } from '../model/packed-adapter.ts'
import type { SequenceRequest } from './engine-types.ts'

export interface ModelLimits {
  vocabSize: number
  maxPositions: number
  adapterSlots: number
}

/** Throws the refusal. */
export function checkTokens(
  tokens: Int32Array,
  adapter: PackedAdapter | undefined,
  model: ModelLimits,
  room: 0 | 1,
): void {
  if (tokens.length === 0) {
    throw new RingletError('field_invalid', 'the prompt has no tokens')
  }
  if (tokens.length + room > model.maxPositions) {
    const most = model.maxPositions - room
    throw new RingletError('prompt_too_long', `the prompt has ${tokens.length} tokens; at most ${most} fit`)
  }
  checkVocabulary(tokens, model.vocabSize)
  if (adapter !== undefined && model.adapterSlots === 0) {
    throw new RingletError('adapter_capacity', 'this engine has no adapter slots')
  }
}

export function checkRequest(
  request: SequenceRequest,
  adapter: PackedAdapter | undefined,
  model: ModelLimits,
  hasMasks: boolean,
): void {
  if (request.adapterDigest !== adapter?.digest) {
    const given = adapter?.digest ?? 'none'
    throw new RingletError('internal', `adapter ${request.adapterDigest ?? 'none'} was asked for, ${given} was given`)
  }
  checkTokens(request.promptTokens, adapter, model, request.maxNewTokens > 0 ? 1 : 0)
  checkVocabulary(request.deliveredTokens, model.vocabSize)
  if (!Number.isSafeInteger(request.maxNewTokens) || request.maxNewTokens < 0) {
    throw new RingletError('field_invalid', `max_new_tokens must be an integer ≥ 0; given: ${request.maxNewTokens}`)
  }
  if (request.grammarId !== undefined && !hasMasks) {
    throw new RingletError('not_supported', 'this engine has no grammar support')
  }
}

function checkVocabulary(tokens: Int32Array, vocabSize: number): void {
  const strange = tokens.find((token) => token < 0 || token >= vocabSize)
  if (strange !== undefined) {
    throw new RingletError('field_invalid', `token id ${strange} is outside the vocabulary of ${vocabSize}`)
  }
}
