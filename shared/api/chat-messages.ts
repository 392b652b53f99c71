/** Chat messages, tools and tool choice as OpenAI writes them, to what chat template and grammar read. */

import { z } from 'zod'
import { RingletError } from '../errors.ts'
import { fieldInvalid, formatPath, type Path } from './body-parse.ts'
import { sortFields } from './field-rules.ts'
import type { ChatMessage, JsonValue, ToolCall, ToolChoice, ToolUse } from './generate-request.ts'

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
      z.looseObject({
        id: z.string().max(256),
        type: z.literal('function').default('function'),
        function: z.looseObject({ name: z.string().max(256), arguments: z.string() }),
      }),
    )
    .nullish(),
  tool_call_id: z.string().max(256).nullish(),
  refusal: z.string().nullish(),
})

export const toolSchema = z.looseObject({
  type: z.literal('function'),
  function: z.looseObject({
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
    z.looseObject({ type: z.literal('function'), function: z.looseObject({ name: toolName }) }),
  ],
  { error: 'expected "none", "auto", "required" or {"type": "function", "function": {"name": …}}' },
)

type GivenMessage = z.infer<typeof chatMessageSchema>
type GivenCall = NonNullable<GivenMessage['tool_calls']>[number]

/** What chat templates of reasoning models read of an assistant's earlier turns; OpenAI's API has no place for it. */
const TEMPLATE_FIELDS = ['reasoning_content', 'reasoning', 'thinking']
const MESSAGE_FIELDS = ['role', 'content', 'name', 'tool_calls', 'tool_call_id', 'refusal', ...TEMPLATE_FIELDS]
/** An assistant's reply may come back whole: its citations are no words of the conversation. */
const MESSAGE_RULES = { known: MESSAGE_FIELDS, ignored: ['annotations'], refused: ['audio', 'function_call'] }

/** Text parts are joined by line breaks; other parts are refused, since the served models read text alone. */
export function toChatMessages(given: GivenMessage[]): { messages: ChatMessage[]; ignored: string[] } {
  const ignored: string[] = []
  const messages = given.map((message, i): ChatMessage => {
    const path = ['messages', i] as const
    ignored.push(...sortFields(message, path, MESSAGE_RULES))
    const { role, content, name, tool_calls, tool_call_id, refusal } = message
    // OpenAI keeps an assistant's refusal beside the content; to a chat template it is what the assistant said.
    const text = Array.isArray(content)
      ? joinParts(content, [...path, 'content'], ignored)
      : (content ?? refusal ?? null)
    if (text === null && !(role === 'assistant' && tool_calls != null && tool_calls.length > 0)) {
      throw fieldInvalid([...path, 'content'], `\`messages[${i}].content\`: a message of role ${role} needs content`)
    }
    if (role === 'tool' && tool_call_id == null) {
      throw fieldInvalid([...path, 'tool_call_id'], `\`messages[${i}].tool_call_id\`: a tool message names its call`)
    }
    const read = TEMPLATE_FIELDS.flatMap((field) => (message[field] == null ? [] : [[field, message[field]] as const]))
    return {
      ...Object.fromEntries(read),
      role,
      content: text,
      ...(name == null ? {} : { name }),
      ...(tool_calls == null || tool_calls.length === 0 ? {} : { tool_calls: toCalls(tool_calls, path, ignored) }),
      ...(tool_call_id == null ? {} : { tool_call_id }),
    }
  })
  return { messages, ignored }
}

function toCalls(calls: readonly GivenCall[], path: Path, ignored: string[]): ToolCall[] {
  return calls.map((call, i) => {
    const at = [...path, 'tool_calls', i]
    // A stream's deltas number the calls; the list's order says the same.
    ignored.push(...sortFields(call, at, { known: ['id', 'type', 'function'], ignored: ['index'] }))
    sortFields(call.function, [...at, 'function'], { known: ['name', 'arguments'] })
    const { name, arguments: text } = call.function
    return { id: call.id, type: call.type, function: { name, arguments: text } }
  })
}

function joinParts(parts: z.infer<typeof contentPartSchema>[], path: Path, ignored: string[]): string {
  return parts
    .map((part, i) => {
      const field = part.type === 'text' || part.type === 'refusal' ? part.type : undefined
      if (field === undefined) {
        const shown = part.type.slice(0, 32).replace(/[^\x20-\x7e]/g, '?')
        throw fieldInvalid([...path, i], `a content part of type '${shown}' is not supported: this model reads text`)
      }
      const text = part[field]
      if (text === undefined) {
        throw fieldInvalid([...path, i, field], `missing field \`${formatPath([...path, i, field])}\``)
      }
      // Prefixes are reused without being marked.
      ignored.push(...sortFields(part, [...path, i], { known: ['type', field], ignored: ['prompt_cache_breakpoint'] }))
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
  checkToolFields(tools ?? [], choice)
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

/** OpenAI defines no field of a tool that could be left out without changing the answer. */
function checkToolFields(
  tools: z.infer<typeof toolsSchema>,
  choice: z.infer<typeof toolChoiceSchema> | null | undefined,
): void {
  for (const [i, tool] of tools.entries()) {
    sortFields(tool, ['tools', i], { known: ['type', 'function'] })
    const known = ['name', 'description', 'parameters', 'strict']
    sortFields(tool.function, ['tools', i, 'function'], { known })
  }
  if (typeof choice === 'object' && choice !== null) {
    sortFields(choice, ['tool_choice'], { known: ['type', 'function'] })
    sortFields(choice.function, ['tool_choice', 'function'], { known: ['name'] })
  }
}

function toolInvalid(param: string, message: string): RingletError {
  return new RingletError('tool_invalid', message, { param })
}
