/** Tool events in OpenAI's shapes: the message of a whole reply, and the deltas of a stream. */

import { createHash } from 'node:crypto'
import type { ToolCall } from '../../shared/api/generate-request.ts'
import type { ToolCallDelta } from '../../shared/api/openai-reply.ts'
import type { ToolEvent, ToolParser } from './tool-parser.ts'

/** The same on every node that has a part in the answer. `choice`: its index in the request. */
export function toolCallId(requestId: string, choice: number, index: number): string {
  const hash = createHash('sha256').update(`${requestId}\0${choice}\0${index}`).digest('hex')
  return `call_${hash.slice(0, 24)}`
}

export interface ToolMessage {
  content: string | null
  toolCalls: ToolCall[]
}

export function toToolMessage(parser: ToolParser, text: string, idOf: (index: number) => string): ToolMessage {
  const toolCalls: ToolCall[] = []
  let content = ''
  for (const event of [...parser.push(text), ...parser.end()]) {
    if (event.kind === 'content') {
      content += event.text
    } else if (event.kind === 'call') {
      toolCalls.push({ id: idOf(event.index), type: 'function', function: { name: event.name, arguments: '' } })
    } else {
      const call = toolCalls[event.index]
      if (call !== undefined) {
        call.function.arguments += event.text
      }
    }
  }
  return { content: content === '' && toolCalls.length > 0 ? null : content, toolCalls }
}

export interface ToolDelta {
  content: string
  toolCalls: ToolCallDelta[]
}

/** One delta for what one piece of text brought; a call's beginning and its first arguments are one entry. */
export function toToolDelta(events: readonly ToolEvent[], idOf: (index: number) => string): ToolDelta {
  const delta: ToolDelta = { content: '', toolCalls: [] }
  for (const event of events) {
    if (event.kind === 'content') {
      delta.content += event.text
    } else if (event.kind === 'call') {
      const { index, name } = event
      delta.toolCalls.push({ index, id: idOf(index), type: 'function', function: { name, arguments: '' } })
    } else {
      const last = delta.toolCalls.at(-1)
      if (last?.index === event.index) {
        last.function.arguments = (last.function.arguments ?? '') + event.text
      } else {
        delta.toolCalls.push({ index: event.index, function: { arguments: event.text } })
      }
    }
  }
  return delta
}
