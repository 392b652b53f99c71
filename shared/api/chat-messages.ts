/** Chat messages, tools and tool choice as OpenAI writes them, to what chat template and grammar read. */

import { z } from 'zod'
import { RingletError } from '../errors.ts'
import { fieldInvalid, type Path } from './body-parse.ts'
import type { ChatMessage, JsonValue, ToolChoice, ToolUse } from './generate-request.ts'

/** OpenAI's caps. */
const MAX_TOOLS = 128
const toolName = z.string().regex(/^[a-zA-Z0-9_-]{1,64}$/, 'a function name has 1 to 64 letters, digits, _ and -')

const contentPartSchema = z.looseObject({
  type: z.string(),
  text: z.string().optional(),
  refusal: z.string().optional(),
})

export const chatMessageSchema = z.looseObject({
  role: z.enum(['system', 'developer', 'user', 'assistant', 'tool']),
  content: z
    .union([z.string(), z.array(contentPartSchema)], { error: 'expected a string or an array of content parts' })
    .nullish(),
  name: z.string().max(256).nullish(),
  tool_calls: z
    .array(
      z.object({
        id: z.string().max(256),
        type: z.literal('function').default('function'),
        function: z.object({ name: z.string().max(256), arguments: z.string() }),
      }),
    )
    .nullish(),
  tool_call_id: z.string().max(256).nullish(),
})

export const toolSchema = z.object({
  type: z.literal('function'),
  function: z.object({
    name: toolName,
    description: z.string().nullish(),
    parameters: z.record(z.string(), z.unknown()).nullish(),
    strict: z.boolean().nullish(),
  }),
})

export const toolsSchema = z.array(toolSchema).max(MAX_TOOLS)

export const toolChoiceSchema = z.union(
  [
    z.enum(['none', 'auto', 'required']),
    z.object({ type: z.literal('function'), function: z.object({ name: toolName }) }),
  ],
  { error: 'expected "none", "auto", "required" or {"type": "function", "function": {"name": …}}' },
)

/** Text parts are joined by line breaks; other parts are refused, since the served models read text alone. */
export function toChatMessages(given: z.infer<typeof chatMessageSchema>[]): ChatMessage[] {
  return given.map((message, i) => {
    const { content, name, tool_calls, tool_call_id, ...further } = message
    const text = Array.isArray(content) ? joinParts(content, ['messages', i, 'content']) : (content ?? null)
    if (text === null && !(message.role === 'assistant' && tool_calls != null && tool_calls.length > 0)) {
      throw fieldInvalid(
        ['messages', i, 'content'],
        `\`messages[${i}].content\`: a ${message.role} message needs content`,
      )
    }
    if (message.role === 'tool' && tool_call_id == null) {
      throw fieldInvalid(
        ['messages', i, 'tool_call_id'],
        `\`messages[${i}].tool_call_id\`: a tool message names its call`,
      )
    }
    return {
      ...further,
      content: text,
      ...(name == null ? {} : { name }),
      ...(tool_calls == null || tool_calls.length === 0 ? {} : { tool_calls }),
      ...(tool_call_id == null ? {} : { tool_call_id }),
    }
  })
}

function joinParts(parts: z.infer<typeof contentPartSchema>[], path: Path): string {
  return parts
    .map((part, i) => {
      const text = part.type === 'text' ? part.text : part.type === 'refusal' ? part.refusal : undefined
      if (text === undefined) {
        const shown = part.type.slice(0, 32).replace(/[^\x20-\x7e]/g, '?')
        throw fieldInvalid([...path, i], `a content part of type '${shown}' is not supported: this model reads text`)
      }
      return text
    })
    .join('\n')
}

/** `undefined`: no tools. `prompt` is LoRAX's `tool_prompt`. */
export function toToolUse(
  tools: z.infer<typeof toolsSchema> | null | undefined,
  choice: z.infer<typeof toolChoiceSchema> | null | undefined,
  parallel: boolean,
  prompt: string | undefined,
): ToolUse | undefined {
  const chosen: ToolChoice =
    choice == null
      ? { kind: 'auto' }
      : typeof choice === 'string'
        ? { kind: choice }
        : { kind: 'named', name: choice.function.name }
  if (tools == null || tools.length === 0) {
    if (chosen.kind === 'required' || chosen.kind === 'named') {
      throw toolInvalid('tool_choice', '`tool_choice` is only allowed when `tools` are given')
    }
    return undefined
  }
  const names = tools.map((tool) => tool.function.name)
  const twice = names.find((name, i) => names.indexOf(name) !== i)
  if (twice !== undefined) {
    throw toolInvalid('tools', `two tools are named '${twice}'`)
  }
  if (chosen.kind === 'named' && !names.includes(chosen.name)) {
    throw toolInvalid('tool_choice', `Tool with name ${chosen.name} required not found`)
  }
  return {
    tools: tools.map((tool) => ({
      type: 'function',
      function: {
        name: tool.function.name,
        ...(tool.function.description == null ? {} : { description: tool.function.description }),
        // What JSON.parse made is JSON.
        ...(tool.function.parameters == null ? {} : { parameters: tool.function.parameters as JsonValue }),
        ...(tool.function.strict == null ? {} : { strict: tool.function.strict }),
      },
    })),
    choice: chosen,
    parallel,
    ...(prompt === undefined ? {} : { prompt }),
  }
}

function toolInvalid(param: string, message: string): RingletError {
  return new RingletError('tool_invalid', message, { param })
}
