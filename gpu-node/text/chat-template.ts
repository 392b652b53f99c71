/** A model's chat template: messages and tools to the prompt's text. */

import { Template } from '@huggingface/jinja'
import type { ChatMessage, JsonValue, ToolDefinition } from '../../shared/api/generate-request.ts'
import { RingletError } from '../../shared/errors.ts'

/** Far above any context; a template that repeats its input without end stops here. */
const MAX_RENDERED_LENGTH = 16 * 1024 * 1024
/** What a template's own complaint may fill of an error message. */
const MAX_COMPLAINT_LENGTH = 300

export interface ChatTemplateOptions {
  /** Sources by name, of which `default`, and `tool_use` when there are tools, are used. */
  templates: ReadonlyMap<string, string>
  bosText: string | undefined
  eosText: string | undefined
}

export interface ChatInput {
  messages: readonly ChatMessage[]
  tools: readonly ToolDefinition[]
  variables: Readonly<Record<string, JsonValue>>
}

export interface ChatTemplate {
  /** The template lists the tools itself; otherwise the caller puts them into a message. */
  readonly readsTools: boolean
  /** Throws `template_failed` with the template's own complaint. */
  render(input: ChatInput): string
}

/** `undefined`: the model has no chat template. Throws a plain error when the template's source is broken. */
export function createChatTemplate(options: ChatTemplateOptions): ChatTemplate | undefined {
  const source = options.templates.get('default') ?? [...options.templates.values()][0]
  if (source === undefined) {
    return undefined
  }
  const toolSource = options.templates.get('tool_use') ?? source
  const plain = compile(source)
  const withTools = toolSource === source ? plain : compile(toolSource)
  return {
    readsTools: /\btools\b/.test(toolSource),
    render: (input) => {
      const hasTools = input.tools.length > 0
      const knowsDeveloper = (hasTools ? toolSource : source).includes('developer')
      return renderTemplate(hasTools ? withTools : plain, {
        ...input.variables,
        messages: input.messages.map((message) => toTemplateMessage(message, knowsDeveloper)),
        tools: hasTools ? input.tools : null,
        documents: null,
        add_generation_prompt: true,
        bos_token: options.bosText ?? '',
        eos_token: options.eosText ?? '',
      })
    },
  }
}

function compile(source: string): Template {
  try {
    return new Template(source)
  } catch (cause) {
    throw new Error(`the chat template does not parse: ${complaint(cause)}`, { cause })
  }
}

function renderTemplate(template: Template, variables: Record<string, unknown>): string {
  let text: string
  try {
    text = template.render(variables)
  } catch (cause) {
    throw new RingletError('template_failed', `Failed applying chat template to inputs: ${complaint(cause)}`, {
      param: 'messages',
      cause,
    })
  }
  if (text.length > MAX_RENDERED_LENGTH) {
    throw new RingletError('template_failed', `the rendered chat is longer than ${MAX_RENDERED_LENGTH} characters`)
  }
  return text
}

/** Templates index and print arguments as objects (transformers passes them so); `developer` is `system` to older ones. */
function toTemplateMessage(message: ChatMessage, knowsDeveloper: boolean): Record<string, unknown> {
  return {
    ...message,
    role: message.role === 'developer' && !knowsDeveloper ? 'system' : message.role,
    content: message.content ?? '',
    ...(message.tool_calls === undefined
      ? {}
      : {
          tool_calls: message.tool_calls.map((call) => ({
            ...call,
            function: { ...call.function, arguments: parseArguments(call.function.arguments) },
          })),
        }),
  }
}

/** A model's own call may have been cut off; then the text stands for itself. */
function parseArguments(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

function complaint(cause: unknown): string {
  return (cause instanceof Error ? cause.message : String(cause)).slice(0, MAX_COMPLAINT_LENGTH)
}
