import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { spellMarker } from '../../../gpu-node/grammar/grammar-vocabulary.ts'
import { createTextStream } from '../../../gpu-node/text/text-stream.ts'
import { detectToolFormat } from '../../../gpu-node/tools/tool-format.ts'
import { toolGrammar, toToolError } from '../../../gpu-node/tools/tool-grammar.ts'
import { createToolParser } from '../../../gpu-node/tools/tool-parser.ts'
import { withToolsAsText } from '../../../gpu-node/tools/tool-prompt.ts'
import type { OutputFormat, ToolChoice, ToolDefinition, ToolUse } from '../../../shared/api/generate-request.ts'
import { allowedTokens, createHarness, type Harness, seededRandom } from '../grammar/grammar-harness.ts'
import { validates } from '../grammar/schema-check.ts'

let harness: Harness

beforeAll(async () => {
  harness = await createHarness()
})
afterAll(() => harness.close())

const TIME: ToolDefinition = {
  type: 'function',
  function: {
    name: 'get_time',
    description: 'The time somewhere',
    parameters: { type: 'object', properties: { zone: { enum: ['Oslo', 'Riga'] } }, required: ['zone'] },
  },
}
const ADD: ToolDefinition = {
  type: 'function',
  function: {
    name: 'add',
    parameters: {
      type: 'object',
      properties: { a: { type: 'integer' }, b: { type: 'integer' } },
      required: ['a', 'b'],
      additionalProperties: false,
    },
  },
}
const PING: ToolDefinition = { type: 'function', function: { name: 'ping' } }
const TOOLS = [TIME, ADD, PING]

const FORMATS = {
  hermes: detectToolFormat([]),
  llama: detectToolFormat(['<|python_tag|>']),
  mistral: detectToolFormat(['[TOOL_CALLS]']),
}

function use(choice: ToolChoice, parallel = true): ToolUse {
  return { tools: TOOLS, choice, parallel }
}

function parse(format: (typeof FORMATS)[keyof typeof FORMATS], text: string) {
  const parser = createToolParser(
    format,
    TOOLS.map((tool) => tool.function.name),
  )
  const events = [...parser.push(text), ...parser.end()]
  const content = events.map((event) => (event.kind === 'content' ? event.text : '')).join('')
  const calls = events
    .filter((event) => event.kind === 'call')
    .map((event) => ({
      name: event.name,
      arguments: events
        .map((other) => (other.kind === 'arguments' && other.index === event.index ? other.text : ''))
        .join(''),
    }))
  return { content, calls }
}

describe.each(Object.values(FORMATS))('a model that knows nothing, in the $name format', (format) => {
  test('makes valid calls when it must', async () => {
    const spec = toolGrammar(format, use({ kind: 'required' }), (text) => text, undefined)
    const seen = new Set<string>()
    for (let seed = 0; seed < 12; seed++) {
      const text = await harness.sample(spec, seededRandom(seed), { maxTokens: 1200 })
      const { content, calls } = parse(format, text ?? '')
      expect(content, text).toBe('')
      expect(calls.length, text).toBeGreaterThan(0)
      for (const call of calls) {
        seen.add(call.name)
        const schema = TOOLS.find((tool) => tool.function.name === call.name)?.function.parameters ?? { type: 'object' }
        expect(validates(schema, JSON.parse(call.arguments), schema), text).toEqual([])
      }
    }
    expect(seen.size).toBe(3)
  })

  test('makes one call, to the function named', async () => {
    const spec = toolGrammar(format, use({ kind: 'named', name: 'add' }), (text) => text, undefined)
    for (let seed = 0; seed < 5; seed++) {
      const text = await harness.sample(spec, seededRandom(seed))
      expect(parse(format, text ?? '').calls.map((call) => call.name)).toEqual(['add'])
    }
  })

  test('may write anything, but once it begins a call, the call is valid', async () => {
    const spec = toolGrammar(format, use({ kind: 'auto' }, false), (text) => text, undefined)
    const lease = await harness.service.acquire(spec)
    const start = harness.tokenizer.encode(`${format.open}${format.inArray ? '[' : ''}{"name": "ad`, false)
    harness.masks.begin(format.name, lease.grammarId, Int32Array.from(start))
    const mask = await harness.nextMask(format.name)
    const [d] = harness.tokenizer.encode('d', false)
    expect(harness.tokenizer.rawToken(d ?? -1)).toBe('d')
    expect([...(mask ?? [])].reduce((bits, word) => bits + popCount(word), 0)).toBeLessThan(4)
    harness.masks.end(format.name)
    lease.release()
    const free = await harness.sample(spec, seededRandom(3), { maxTokens: 60, closing: 0 })
    expect(free === undefined || free.length > 0).toBe(true)
  })

  test('answers in the response format when it calls nothing', async () => {
    const answer: OutputFormat = {
      kind: 'json_schema',
      schema: { type: 'object', properties: { ok: { type: 'boolean' } }, required: ['ok'] },
      strict: true,
    }
    const spec = toolGrammar(format, use({ kind: 'auto' }), (text) => text, answer)
    const kinds = new Set<string>()
    for (let seed = 0; seed < 16; seed++) {
      const text = (await harness.sample(spec, seededRandom(seed), { maxTokens: 1200 })) ?? ''
      const { content, calls } = parse(format, text)
      kinds.add(calls.length > 0 ? 'calls' : 'answer')
      if (calls.length === 0) {
        expect(JSON.parse(content)).toEqual({ ok: expect.any(Boolean) })
      }
    }
    expect([...kinds].sort()).toEqual(['answer', 'calls'])
  })
})

test('a format whose mark is a special token: it may come where a call may begin, never inside one', async () => {
  const marker = '<|system|>'
  const special = await createHarness({}, [marker])
  try {
    const id = special.tokenizer.tokenId(marker) ?? -1
    expect(special.tokenizer.isSpecial(id)).toBe(true)
    const format = { ...FORMATS.mistral, open: marker }
    const spell = (text: string) => spellMarker(special.tokenizer, text)
    const lease = await special.service.acquire(toolGrammar(format, use({ kind: 'required' }), spell, undefined))
    special.masks.begin('marked', lease.grammarId, new Int32Array(0))
    expect(allowedTokens((await special.nextMask('marked')) ?? new Int32Array(0))).toEqual([id])
    special.masks.end('marked')
    lease.release()

    const json = await special.service.acquire({ kind: 'json_object' })
    special.masks.begin('json', json.grammarId, Int32Array.from(special.tokenizer.encode('{"a": "b', false)))
    const inString = allowedTokens((await special.nextMask('json')) ?? new Int32Array(0))
    expect(inString.length).toBeGreaterThan(500)
    expect(inString).not.toContain(id)
    special.masks.end('json')
    json.release()

    const text = { stop: [], keepStopText: false, standsAlone: true }
    const shown = createTextStream(special.tokenizer, { ...text, shownSpecial: new Set([id]) })
    const hidden = createTextStream(special.tokenizer, text)
    expect([shown.push(id).text, hidden.push(id).text]).toEqual([marker, ''])
  } finally {
    await special.close()
  }
})

test('a tool with a wrong schema is named', async () => {
  const wrong: ToolDefinition = {
    type: 'function',
    function: {
      name: 'bad',
      strict: true,
      parameters: { type: 'object', properties: { x: { type: 'string', not: {} } } },
    },
  }
  const spec = toolGrammar(
    FORMATS.hermes,
    { tools: [wrong], choice: { kind: 'auto' }, parallel: true },
    (t) => t,
    undefined,
  )
  const error = toToolError(await harness.service.acquire(spec).catch((e: unknown) => e))
  expect(error).toMatchObject({
    code: 'tool_invalid',
    param: 'tools',
    message: expect.stringMatching(/function 'bad': #\/properties\/x\/not/),
  })
})

test('without a place for tools in the template they go into the messages', () => {
  const messages = [
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'Time in Oslo?' },
    {
      role: 'assistant',
      content: null,
      tool_calls: [
        { id: 'call_1', type: 'function' as const, function: { name: 'get_time', arguments: '{"zone":"Oslo"}' } },
      ],
    },
    { role: 'tool', content: '12:00', tool_call_id: 'call_1' },
  ]
  const [system, user, assistant, tool] = withToolsAsText(messages, use({ kind: 'auto' }), FORMATS.hermes)
  expect(system?.content).toMatch(/^Be brief\.\n\n.*"name":"get_time".*<tool_call>/s)
  expect(user).toEqual(messages[1])
  expect(assistant?.content).toBe('<tool_call>\n{"name": "get_time", "arguments": {"zone":"Oslo"}}\n</tool_call>')
  expect(assistant).not.toHaveProperty('tool_calls')
  expect(tool).toEqual({ role: 'user', content: '<tool_response>\n12:00\n</tool_response>' })
  const [first] = withToolsAsText(messages.slice(1, 2), { ...use({ kind: 'auto' }), prompt: 'Tools:' }, FORMATS.hermes)
  expect(first?.content).toMatch(/^Tools:\n.*\n\nTime in Oslo\?$/s)
  expect(withToolsAsText(messages.slice(0, 2), use({ kind: 'none' }), FORMATS.hermes)).toEqual(messages.slice(0, 2))
})

function popCount(word: number): number {
  let count = 0
  for (let rest = word >>> 0; rest !== 0; rest = (rest & (rest - 1)) >>> 0) {
    count += 1
  }
  return count
}
