/**
 * OpenAI's streams: chunks by choice, usage if asked for, `[DONE]` after success. Another node may have to go on behind any event,
 * so a choice's end is told once: in one piece with its last token, or with the end of the stream.
 */

import type { ChatChunk, ChatDelta, CompletionChunk } from '../../shared/api/openai-reply.ts'
import { type ToolDelta, toolCallId, toToolDelta } from '../tools/tool-reply.ts'
import { type Choice, type ChoiceEvent, type ChoiceFinish, type ChoiceToken, contentTokens } from './choice.ts'
import { echoParts } from './echo-parts.ts'
import type { EventWriter } from './event-stream.ts'
import type { Generation } from './generation.ts'
import {
  createCompletionLogprobs,
  envelope,
  type LoggedToken,
  type OpenAiShape,
  toChatLogprobs,
  toOpenAiFinish,
  usageOf,
} from './openai-reply.ts'
import type { StreamPosition } from './stream-position.ts'

/** How one route's chunks look; text and tokens since the choice's last chunk, and the end if this is it. */
interface ChunkShape {
  /** What stands before a choice's first chunk because it would make it too large; made as it is sent. */
  opening(choice: number): Iterable<object>
  /** `undefined`: nothing to say yet; the tokens come again with the next text. */
  chunk(
    choice: number,
    text: string,
    tokens: readonly ChoiceToken[],
    finish: ChoiceFinish | undefined,
  ): object | undefined
  /** Which of a choice's last tokens its logprobs list. */
  listed(tokens: readonly ChoiceToken[], finish: ChoiceFinish): ChoiceToken[]
  usageChunk(): object
}

export async function writeOpenAiStream(
  shape: OpenAiShape,
  generation: Generation,
  position: StreamPosition,
  delivered: DeliveredTokens,
  writer: EventWriter,
): Promise<void> {
  const route = shape.parsed.route
  const chunks = (route === '/v1/chat/completions' ? chatChunks : completionChunks)(shape, generation, delivered)
  /** Tokens of a choice whose text is still held back: half a character, or what may begin a stop string. */
  const pending = generation.choices.map((): ChoiceToken[] => [])
  /** `goesOn`: the next chunk of the choice follows at once, and carries the id of both. */
  const send = async (
    choice: number,
    text: string,
    finish: ChoiceFinish | undefined,
    goesOn: boolean,
  ): Promise<void> => {
    for (const part of chunks.opening(choice)) {
      await writer.send(JSON.stringify(part))
    }
    const chunk = chunks.chunk(choice, text, pending[choice] ?? [], finish)
    if (chunk !== undefined) {
      pending[choice] = []
      await writer.send(JSON.stringify(chunk), goesOn ? undefined : position.take(choice))
    }
  }
  const sendEnd = async ({ choice, tail, finish }: ChoiceEnd): Promise<void> => {
    pending[choice] = chunks.listed(pending[choice] ?? [], finish)
    if (tail !== '') {
      await send(choice, tail, undefined, true)
    }
    await send(choice, '', finish, false)
  }
  /** Ends that came behind the last token's event (a grammar's): they have no id, so nothing with an id may follow them. */
  const late: ChoiceEnd[] = []
  for await (const events of generation.events) {
    for (const [i, event] of events.entries()) {
      if (event.kind === 'token') {
        pending[event.choice]?.push(event.token)
        position.add(event.choice, event.token.tokenId)
        if (event.token.text !== '') {
          const next = events[i + 1]
          await send(event.choice, event.token.text, undefined, next?.kind === 'end' && next.choice === event.choice)
        }
      } else if (position.waits(event.choice)) {
        await sendEnd(event)
      } else {
        late.push(event)
      }
    }
  }
  for (const end of late) {
    await sendEnd(end)
  }
  if (shape.parsed.reply.includeUsage) {
    await writer.send(JSON.stringify(chunks.usageChunk()))
  }
  await writer.send('[DONE]')
}

type ChoiceEnd = Extract<ChoiceEvent, { kind: 'end' }>

/** Of each choice, what the client has of another node. */
export type DeliveredTokens = (choice: number) => readonly number[]

function openedChoices(generation: Generation, delivered: DeliveredTokens): Set<number> {
  return new Set(generation.choices.map(({ index }) => index).filter((index) => delivered(index).length > 0))
}

function chatChunks(shape: OpenAiShape, generation: Generation, delivered: DeliveredTokens): ChunkShape {
  const head = { ...envelope(shape, 'chatcmpl'), object: 'chat.completion.chunk' as const }
  const usage = shape.parsed.reply.includeUsage ? { usage: null } : {}
  // The role opens a choice in its first chunk with tokens, so that a continuation knows by them whether it was sent.
  const opened = openedChoices(generation, delivered)
  const tools = generation.choices.map((choice) => createToolDeltas(shape, generation, choice))
  return {
    opening: () => [],
    chunk: (choice, text, tokens, finish): ChatChunk | undefined => {
      const tool = tools[choice]
      const { content, toolCalls } = tool?.take(text, finish) ?? { content: text, toolCalls: [] }
      if (content === '' && toolCalls.length === 0 && finish === undefined) {
        return undefined
      }
      const saysNothing = content === '' && (toolCalls.length > 0 || finish !== undefined || opened.has(choice))
      const delta: ChatDelta = {
        ...(opened.has(choice) ? {} : { role: 'assistant' }),
        ...(saysNothing ? {} : { content }),
        ...(toolCalls.length === 0 ? {} : { tool_calls: toolCalls }),
      }
      opened.add(choice)
      return {
        ...head,
        choices: [
          {
            index: choice,
            delta,
            logprobs:
              shape.parsed.reply.logprobs && tokens.length > 0
                ? { content: toChatLogprobs(shape.tokenizer, tokens), refusal: null }
                : null,
            finish_reason: finish === undefined ? null : toOpenAiFinish(finish, tool?.calls),
          },
        ],
        ...usage,
      }
    },
    // Those of the message's content; completions list all that were generated, as OpenAI's do.
    listed: contentTokens,
    usageChunk: (): ChatChunk => ({ ...head, choices: [], usage: usageOf(generation) }),
  }
}

function echoedTokens({ parsed: { request } }: OpenAiShape, { prompts }: Generation, choice: number): Iterable<number> {
  return (request.echoPrompt ? prompts[Math.floor(choice / request.bestOf)]?.tokens : undefined) ?? []
}

/** A choice's text as content and tool calls; a continuation's parser has read what the client has. */
function createToolDeltas(shape: OpenAiShape, generation: Generation, { index, replayedText }: Choice) {
  const parser = generation.createToolParser?.()
  if (parser === undefined) {
    return undefined
  }
  parser.push(replayedText)
  const idOf = (call: number): string => toolCallId(shape.ticket.requestId, index, call)
  return {
    take: (text: string, finish: ChoiceFinish | undefined): ToolDelta =>
      toToolDelta([...parser.push(text), ...(finish === undefined ? [] : parser.end())], idOf),
    get calls() {
      return parser.calls
    },
  }
}

function completionChunks(shape: OpenAiShape, generation: Generation, delivered: DeliveredTokens): ChunkShape {
  const { reply } = shape.parsed
  const head = { ...envelope(shape, 'cmpl'), object: 'text_completion' as const }
  const usage = reply.includeUsage ? { usage: null } : {}
  const opened = openedChoices(generation, delivered)
  const logprobs = generation.choices.map(({ index }) =>
    createCompletionLogprobs(
      shape,
      opened.has(index) ? [...echoedTokens(shape, generation, index), ...delivered(index)] : [],
    ),
  )
  const echoes = generation.choices.map(({ index }) => echoParts(shape.parsed.request, generation, index))
  const chunkOf = (choice: number, text: string, tokens: LoggedToken[], finish: ChoiceFinish | undefined) => ({
    ...head,
    choices: [
      {
        index: choice,
        text,
        logprobs: reply.logprobs && tokens.length > 0 ? (logprobs[choice]?.(tokens) ?? null) : null,
        finish_reason: finish === undefined ? null : toOpenAiFinish(finish),
      },
    ],
    ...usage,
  })
  return {
    *opening(choice): Iterable<CompletionChunk> {
      if (!opened.has(choice)) {
        for (const part of echoes[choice]?.slice(0, -1) ?? []) {
          yield chunkOf(choice, part.text, part.tokens(), undefined)
        }
      }
    },
    chunk: (choice, text, tokens, finish): CompletionChunk => {
      const echo = opened.has(choice) ? undefined : echoes[choice]?.at(-1)
      opened.add(choice)
      return chunkOf(choice, (echo?.text ?? '') + text, [...(echo?.tokens() ?? []), ...tokens], finish)
    },
    listed: (tokens) => [...tokens],
    usageChunk: (): CompletionChunk => ({ ...head, choices: [], usage: usageOf(generation) }),
  }
}
