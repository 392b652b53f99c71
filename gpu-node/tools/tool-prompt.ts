/**
 * Tools for models whose chat template knows none: the tools and how to call them go into the system message (or before the
 * first message), past calls and their results into the messages' text.
 */

import type { ChatMessage, ToolDefinition, ToolUse } from '../../shared/api/generate-request.ts'
import type { ToolFormat } from './tool-format.ts'

const DEFAULT_PROMPT = 'You can call functions. These are the functions you have, one a line:'

/** `use`: undefined when the request offers no tools (its history may still hold calls). */
export function withToolsAsText(
  messages: readonly ChatMessage[],
  use: ToolUse | undefined,
  format: ToolFormat,
): ChatMessage[] {
  const plain = messages.map((message) => toPlainMessage(message, format))
  if (use === undefined || use.choice.kind === 'none') {
    return plain
  }
  const block = toolBlock(use, format)
  const [first, ...rest] = plain
  // A template may know no system role, so none is made up for the tools.
  return first === undefined
    ? []
    : [
        {
          ...first,
          content: first.role === 'system' ? `${first.content}\n\n${block}` : `${block}\n\n${first.content}`,
        },
        ...rest,
      ]
}

function toolBlock({ tools, prompt, choice }: ToolUse, format: ToolFormat): string {
  const listed = tools.map((tool) => JSON.stringify(describe(tool))).join('\n')
  const example = writeCall(format, 'function name', '{"argument name": value}')
  const when =
    choice.kind === 'auto'
      ? 'Call a function only when it helps to answer; otherwise answer in plain text.'
      : choice.kind === 'named'
        ? `Call the function ${choice.name} now.`
        : 'Call at least one function now.'
  return `${prompt ?? DEFAULT_PROMPT}\n${listed}\n\nTo call one, write:\n${example}\n${when}`
}

function describe({ function: { name, description, parameters } }: ToolDefinition): object {
  return {
    name,
    ...(description === undefined ? {} : { description }),
    ...(parameters === undefined ? {} : { parameters }),
  }
}

function toPlainMessage(message: ChatMessage, format: ToolFormat): ChatMessage {
  const { tool_calls, tool_call_id, ...rest } = message
  if (message.role === 'tool') {
    const name = message.name === undefined ? '' : ` name="${message.name}"`
    return { ...rest, role: 'user', content: `<tool_response${name}>\n${message.content ?? ''}\n</tool_response>` }
  }
  if (tool_calls === undefined || tool_calls.length === 0) {
    return rest
  }
  const calls = tool_calls.map((call) => writeCall(format, call.function.name, call.function.arguments))
  return { ...rest, content: [message.content ?? '', ...calls].filter((part) => part !== '').join('\n') }
}

/** `argumentsText` is JSON text, or stands for it. */
function writeCall(format: ToolFormat, name: string, argumentsText: string): string {
  const call = `{"name": ${JSON.stringify(name)}, "${format.argumentsKey}": ${argumentsText === '' ? '{}' : argumentsText}}`
  const listed = format.inArray ? `[${call}]` : call
  return format.close === '' ? `${format.open}${listed}` : `${format.open}\n${listed}\n${format.close}`
}
