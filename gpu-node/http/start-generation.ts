/**
 * One generating request on this node: adapter leased, sequences submitted, events collected, lease given back. Each request
 * ends once: all its choices ended, or one error for all of them.
 */

import { fieldIn } from '../../shared/api/adapter-fields.ts'
import type { OutputFormat } from '../../shared/api/generate-request.ts'
import { RingletError } from '../../shared/errors.ts'
import type { AdapterLease } from '../adapters/adapter-store.ts'
import type { GrammarLease } from '../grammar/grammar-service.ts'
import type { GrammarSpec } from '../grammar/grammar-spec.ts'
import { spellMarker } from '../grammar/grammar-vocabulary.ts'
import { toolGrammar, toToolError } from '../tools/tool-grammar.ts'
import { promptScoreCount } from './choice-results.ts'
import type { Generation, GenerationInput, GenerationTimings } from './generation.ts'
import type { NodeContext } from './node-context.ts'
import { preparePrompts } from './prepare-prompt.ts'
import { ofAdapter, ofFormat } from './refusals.ts'
import { RunningGeneration } from './running-generation.ts'
import { checkLogitBias } from './sequence-request.ts'

/** Resolves once the adapter is leased and the sequences are queued. */
export async function startGeneration(context: NodeContext, input: GenerationInput): Promise<Generation> {
  if (context.draining()) {
    throw new RingletError('node_draining', 'this node takes no new requests', { retryAfterSeconds: 1 })
  }
  const { request, ticket } = input
  const arrivedAt = context.clock.steady()
  checkLogitBias(request, context.engine.spec.vocabSize, fieldIn(input.api, 'logit_bias'))
  const limits = {
    maxPositions: context.engine.spec.maxPositions,
    vocabSize: context.engine.spec.vocabSize,
    maxNewTokens: ticket.limits.maxNewTokens,
    promptField: input.promptField,
  }
  const caller = { tenantId: ticket.tenantId, signal: input.signal }
  const prompts = await preparePrompts(request.prompts, request, limits, context, caller)
  checkPromptScores(promptScoreCount(prompts, request), context.limits.maxScores)
  const timings: GenerationTimings = { arrivedAt, preparedAt: context.clock.steady() }
  const [lease, grammar] = await bothOrNeither(acquireAdapter(context, input), acquireGrammar(context, input))
  const release = (): void => {
    lease?.release()
    grammar?.release()
  }
  if (lease !== undefined) {
    timings.loadMs = lease.loadMs
    context.metrics.adapterLoaded(lease.cacheTier, lease.loadMs)
  }
  try {
    input.signal.throwIfAborted()
    return new RunningGeneration({ context, input, prompts, lease, grammar, timings, release })
  } catch (error) {
    release()
    throw error
  }
}

/** Of a stream too: the edge holds an echoed prompt until the first token follows it. */
function checkPromptScores(count: number, most: number): void {
  if (count > most) {
    const ask = 'ask for fewer choices or alternatives, or score a shorter prompt'
    throw new RingletError(
      'field_invalid',
      `up to ${most} scores of prompt tokens are given. Asked: ${count}; ${ask}`,
      {
        param: 'logprobs',
      },
    )
  }
}

type Held = { release(): void } | undefined

/** Compiling a grammar and loading an adapter take their time side by side; when one fails, the other is given back. */
async function bothOrNeither<A extends Held, B extends Held>(a: Promise<A>, b: Promise<B>): Promise<[A, B]> {
  const [first, second] = await Promise.allSettled([a, b])
  if (first.status === 'fulfilled' && second.status === 'fulfilled') {
    return [first.value, second.value]
  }
  for (const settled of [first, second]) {
    if (settled.status === 'fulfilled') {
      settled.value?.release()
    }
  }
  throw first.status === 'rejected' ? first.reason : (second as PromiseRejectedResult).reason
}

async function acquireGrammar(context: NodeContext, input: GenerationInput): Promise<GrammarLease | undefined> {
  const { format, toolUse } = input.request
  const caller = { tenantId: input.ticket.tenantId, signal: input.signal }
  if (toolUse === undefined || toolUse.choice.kind === 'none') {
    if (format === undefined) {
      return undefined
    }
    try {
      return await context.grammars.acquire(toGrammarSpec(format), caller)
    } catch (error) {
      throw ofFormat(error, input.api)
    }
  }
  const spell = (text: string): string => spellMarker(context.tokenizer, text)
  try {
    return await context.grammars.acquire(toolGrammar(context.toolFormat, toolUse, spell, format), caller)
  } catch (error) {
    throw toToolError(error)
  }
}

function toGrammarSpec(format: OutputFormat): GrammarSpec {
  return format.kind === 'grammar' ? { kind: 'ebnf', grammar: format.ebnf } : format
}

async function acquireAdapter(context: NodeContext, input: GenerationInput): Promise<AdapterLease | undefined> {
  const { ticket } = input
  if (ticket.adapter.kind === 'base') {
    return undefined
  }
  const caller = {
    tenantId: ticket.tenantId,
    tokens: input.adapterTokens,
    signal: input.signal,
    ...(input.onProgress === undefined ? {} : { onProgress: input.onProgress }),
  }
  const lease = await context.adapters.acquire(ticket.adapter, caller).catch((error: unknown) => {
    throw ofAdapter(error, input.api, ticket.adapter)
  })
  const inEngine = lease.cacheTier === 'ram' && context.engine.isResident(lease.digest)
  return inEngine ? { ...lease, cacheTier: 'engine' } : lease
}
