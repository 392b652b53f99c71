import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { detectToolFormat, type ToolFormat } from '../../../gpu-node/tools/tool-format.ts'
import { createToolParser, type ToolEvent } from '../../../gpu-node/tools/tool-parser.ts'

const HERMES = detectToolFormat(['… return a json object within <tool_call></tool_call> XML tags …'])
const LLAMA = detectToolFormat([
  'Respond in the format {"name": function name, "parameters": dictionary of argument name …}.',
])
const MISTRAL = detectToolFormat(['{{ "[TOOL_CALLS]" }}'])
const TOOLS = ['get_time', 'add']

interface Parsed {
  content: string
  calls: { name: string; arguments: string }[]
}

function join(events: readonly ToolEvent[]): Parsed {
  const parsed: Parsed = { content: '', calls: [] }
  for (const event of events) {
    if (event.kind === 'content') {
      parsed.content += event.text
    } else if (event.kind === 'call') {
      expect(event.index).toBe(parsed.calls.length)
      parsed.calls.push({ name: event.name, arguments: '' })
    } else {
      const call = parsed.calls[event.index]
      expect(event.index).toBe(parsed.calls.length - 1)
      if (call !== undefined) {
        call.arguments += event.text
      }
    }
  }
  return parsed
}

function parse(format: ToolFormat, pieces: readonly string[]): Parsed {
  const parser = createToolParser(format, TOOLS)
  return join([...pieces.flatMap((piece) => parser.push(piece)), ...parser.end()])
}

describe('whole answers', () => {
  const time = { name: 'get_time', arguments: '{"zone": "Europe/Oslo", "at": [1, {"x": "}\\""}]}' }
  const sum = { name: 'add', arguments: '{"a":1,"b":-2.5e3}' }

  test.each([
    ['plain text', HERMES, ' It is <b>late</b> <tool_ca', { content: ' It is <b>late</b> <tool_ca', calls: [] }],
    [
      'a call after some text',
      HERMES,
      `Let me look.\n<tool_call>\n{"name": "get_time", "arguments": ${time.arguments}}\n</tool_call>`,
      { content: 'Let me look.', calls: [time] },
    ],
    [
      'two calls, arguments first, then text',
      HERMES,
      `<tool_call>{"arguments":${sum.arguments},"name":"add"}</tool_call>\n<tool_call>\n{"name": "get_time", "arguments": ${time.arguments}}\n</tool_call>\n Done.`,
      { content: 'Done.', calls: [sum, time] },
    ],
    [
      'a call to something else',
      HERMES,
      'See <tool_call>{"name": "rm", "arguments": {}}</tool_call>',
      {
        content: 'See <tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        calls: [],
      },
    ],
    [
      'a call that was cut off',
      HERMES,
      '<tool_call>{"name": "add", "arguments": {"a": 1',
      {
        content: '',
        calls: [{ name: 'add', arguments: '{"a": 1' }],
      },
    ],
    [
      'a call cut off in its name',
      HERMES,
      '<tool_call>{"name": "ad',
      { content: '<tool_call>{"name": "ad', calls: [] },
    ],
    [
      'a second call cut off in its opening',
      HERMES,
      '<tool_call>{"name": "add", "arguments": {}}</tool_call>\n<to',
      { content: '', calls: [{ name: 'add', arguments: '{}' }] },
    ],
    [
      'a second call cut off in its name',
      HERMES,
      '<tool_call>{"name": "add", "arguments": {}}</tool_call>\n<tool_call>{"name": "ad',
      { content: '', calls: [{ name: 'add', arguments: '{}' }] },
    ],
    [
      'arguments as a string of JSON',
      HERMES,
      '<tool_call>{"name":"add","arguments":"{\\"a\\":1}"}</tool_call>',
      {
        content: '',
        calls: [{ name: 'add', arguments: '{"a":1}' }],
      },
    ],
    ['Llama’s call', LLAMA, ` {"name": "get_time", "parameters": ${time.arguments}}`, { content: '', calls: [time] }],
    [
      'Llama’s calls',
      LLAMA,
      `{"name":"add","parameters":${sum.arguments}}; {"name":"add","parameters":{}}`,
      {
        content: '',
        calls: [sum, { name: 'add', arguments: '{}' }],
      },
    ],
    [
      'JSON that is no call',
      LLAMA,
      '{"answer": 42, "name": "x"} ok',
      { content: '{"answer": 42, "name": "x"} ok', calls: [] },
    ],
    [
      'Mistral’s calls',
      MISTRAL,
      `[TOOL_CALLS] [{"name": "add", "arguments": ${sum.arguments}}, {"name": "get_time", "arguments": {}, "id": "abcdefghi"}]`,
      {
        content: '',
        calls: [sum, { name: 'get_time', arguments: '{}' }],
      },
    ],
  ] satisfies [string, ToolFormat, string, Parsed][])('%s', (_, format, text, expected) => {
    expect(parse(format, [text])).toEqual(expected)
    expect(parse(format, [...text])).toEqual(expected)
  })
})

test('however the text is cut, the result is the same', () => {
  const fragment = fc.constantFrom(
    ...[
      '<tool_call>',
      '</tool_call>',
      '[TOOL_CALLS]',
      '{"name": "add", "arguments": {"a": "}]"}}',
      '{"name": "x"}',
      '<tool',
    ],
    ...[
      '{',
      '}',
      '[',
      ']',
      '"',
      '\\',
      ',',
      ';',
      ':',
      ' ',
      '\n',
      '<',
      'name',
      '"name":',
      '"add"',
      '"arguments":',
      'text',
      'é😀',
    ],
  )
  const answer = fc.array(fragment, { maxLength: 24 }).map((parts) => parts.join(''))
  const cuts = fc.array(fc.nat({ max: 400 }), { maxLength: 12 })
  fc.assert(
    fc.property(fc.constantFrom(HERMES, LLAMA, MISTRAL), answer, cuts, (format, text, at) => {
      const points = [...new Set(at.map((cut) => cut % (text.length + 1)))].sort((a, b) => a - b)
      const pieces = [0, ...points].map((start, i) => text.slice(start, points[i] ?? text.length))
      expect(pieces.join('')).toBe(text)
      expect(parse(format, pieces)).toEqual(parse(format, [text]))
    }),
    { numRuns: 2000 },
  )
})

test('arguments come as they are written, not at their end', () => {
  const parser = createToolParser(HERMES, TOOLS)
  parser.push('<tool_call>\n{"name": "add", ')
  expect(parser.push('"arguments": {"a": 1')).toEqual([{ kind: 'arguments', index: 0, text: '{"a": 1' }])
  expect(parser.push('2')).toEqual([{ kind: 'arguments', index: 0, text: '2' }])
})
