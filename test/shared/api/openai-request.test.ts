import { describe, expect, test } from 'vitest'
import { parseChatRequest, parseCompletionRequest } from '../../../shared/api/openai-request.ts'
import { RingletError } from '../../../shared/errors.ts'

const messages = [{ role: 'user', content: 'Hi' }]
const chat = (fields: object) => parseChatRequest({ model: 'm', messages, ...fields })
const complete = (fields: object) => parseCompletionRequest({ model: 'm', prompt: 'Hi', ...fields })
const refusal = (run: () => unknown): [string, string | undefined] => {
  try {
    run()
  } catch (error) {
    if (error instanceof RingletError) {
      return [error.code, error.param]
    }
    throw error
  }
  throw new Error('was accepted')
}
const tool = { type: 'function', function: { name: 'weather', parameters: { type: 'object' } } }

describe('a chat body', () => {
  test('samples at temperature 1 by default, and is greedy at 0', () => {
    expect(chat({}).request.sampling).toMatchObject({ doSample: true, temperature: 1 })
    expect(chat({ temperature: 0 }).request.sampling.doSample).toBe(false)
  })

  test('joins text parts and keeps further message fields for the template', () => {
    const parts = [
      { type: 'text', text: 'a' },
      { type: 'text', text: 'b' },
    ]
    const parsed = chat({ messages: [{ role: 'user', content: parts, reasoning_content: 'r' }] })
    expect(parsed.request.prompts).toEqual([
      { kind: 'chat', messages: [{ role: 'user', content: 'a\nb', reasoning_content: 'r' }], templateVariables: {} },
    ])
  })

  test('takes a stop as string or list, and both names of the length', () => {
    expect(chat({ stop: 'x' }).request.stop).toEqual(['x'])
    expect(chat({ stop: ['x', 'y'] }).request.stop).toEqual(['x', 'y'])
    expect(chat({ max_tokens: 5 }).request.maxNewTokens).toBe(5)
    expect(chat({ max_completion_tokens: 6 }).request.maxNewTokens).toBe(6)
  })

  test('reads every form of tool_choice', () => {
    expect(chat({ tools: [tool] }).request.toolUse?.choice).toEqual({ kind: 'auto' })
    expect(chat({ tools: [tool], tool_choice: 'required' }).request.toolUse?.choice).toEqual({ kind: 'required' })
    const named = { type: 'function', function: { name: 'weather' } }
    expect(chat({ tools: [tool], tool_choice: named }).request.toolUse?.choice).toEqual({
      kind: 'named',
      name: 'weather',
    })
  })

  test('reads response formats', () => {
    const schema = { type: 'object' }
    const format = (response_format: object) => chat({ response_format }).request.format
    expect(format({ type: 'text' })).toBeUndefined()
    expect(format({ type: 'json_object' })).toEqual({ kind: 'json_object' })
    expect(format({ type: 'json_schema', json_schema: { name: 'n', schema, strict: true } })).toEqual({
      kind: 'json_schema',
      schema,
      strict: true,
    })
  })

  test('lists bookkeeping fields as ignored, and drops nulls', () => {
    const parsed = chat({ user: 'u', store: true, metadata: {}, modalities: ['text'], reasoning_effort: null })
    expect(parsed.ignored).toEqual(['user', 'store', 'metadata', 'modalities'])
  })

  test.each([
    [{ reasoning_effort: 'high' }, 'field_invalid', 'reasoning_effort'],
    [{ functions: [] }, 'field_invalid', 'functions'],
    [{ modalities: ['text', 'audio'] }, 'field_invalid', 'modalities'],
    [{ temprature: 1 }, 'field_unknown', 'temprature'],
    [{ adapter_id: 'x' }, 'field_unknown', 'adapter_id'],
    [{ messages: [] }, 'field_invalid', 'messages'],
    [{ messages: [{ role: 'user' }] }, 'field_invalid', 'messages[0].content'],
    [{ messages: [{ role: 'owner', content: 'x' }] }, 'field_invalid', 'messages[0].role'],
    [{ messages: [{ role: 'tool', content: 'x' }] }, 'field_invalid', 'messages[0].tool_call_id'],
    [{ messages: [{ role: 'user', content: [{ type: 'image_url' }] }] }, 'field_invalid', 'messages[0].content[0]'],
    [{ messages: [{ role: 'user', content: [{ type: 'text' }] }] }, 'field_invalid', 'messages[0].content[0].text'],
    [{ temperature: 3 }, 'field_invalid', 'temperature'],
    [{ n: 0 }, 'field_invalid', 'n'],
    [{ top_logprobs: 3 }, 'field_invalid', 'top_logprobs'],
    [{ logit_bias: { abc: 1 } }, 'field_invalid', 'logit_bias.abc'],
    [{ stream_options: { include_usage: true } }, 'field_invalid', 'stream_options'],
    [{ tool_choice: 'required' }, 'tool_invalid', 'tool_choice'],
    [{ tools: [tool, tool] }, 'tool_invalid', 'tools'],
    [{ tools: [tool], tool_choice: { type: 'function', function: { name: 'x' } } }, 'tool_invalid', 'tool_choice'],
    [{ max_tokens: 1, max_completion_tokens: 2 }, 'field_invalid', 'max_tokens'],
  ])('%j is refused', (fields, code, param) => {
    expect(refusal(() => chat(fields))).toEqual([code, param])
  })

  test('lists what has no effect in nested objects too', () => {
    const echoed = {
      role: 'assistant',
      content: [{ type: 'text', text: 'a', prompt_cache_breakpoint: { mode: 'explicit' } }],
      annotations: [],
      audio: null,
      function_call: null,
      tool_calls: [{ index: 0, id: 'c', type: 'function', function: { name: 'weather', arguments: '{}' } }],
    }
    const parsed = chat({
      stream: true,
      stream_options: { include_usage: true, include_obfuscation: false },
      messages: [...messages, echoed],
      response_format: { type: 'json_schema', json_schema: { name: 'n', description: 'd', schema: {} } },
    })
    expect(parsed.ignored).toEqual([
      'stream_options.include_obfuscation',
      'response_format.json_schema.description',
      'messages[1].annotations',
      'messages[1].content[0].prompt_cache_breakpoint',
      'messages[1].tool_calls[0].index',
    ])
  })

  test('an assistant’s refusal is what it said', () => {
    const refused = { role: 'assistant', content: null, refusal: 'I cannot.' }
    const [prompt] = chat({ messages: [...messages, refused] }).request.prompts
    expect(prompt).toMatchObject({ messages: [{}, { role: 'assistant', content: 'I cannot.' }] })
  })

  const call = { id: 'c', type: 'function', function: { name: 'weather', arguments: '{}' } }
  test.each([
    [{ stream: true, stream_options: { include_usge: true } }, 'field_unknown', 'stream_options.include_usge'],
    [{ response_format: { type: 'json_object', shema: {} } }, 'field_unknown', 'response_format.shema'],
    [
      { response_format: { type: 'json_schema', json_schema: { name: 'n', schem: {} } } },
      'field_unknown',
      'response_format.json_schema.schem',
    ],
    [{ response_format: { type: 'text', schema: {} } }, 'field_invalid', 'response_format.schema'],
    [{ response_format: { type: 'regex', regex: 'a', grammar: 'b' } }, 'field_invalid', 'response_format.grammar'],
    [{ tools: [{ ...tool, functon: {} }] }, 'field_unknown', 'tools[0].functon'],
    [
      { tools: [{ type: 'function', function: { name: 'f', parametres: {} } }] },
      'field_unknown',
      'tools[0].function.parametres',
    ],
    [
      { tools: [tool], tool_choice: { type: 'function', function: { name: 'weather', n: 1 } } },
      'field_unknown',
      'tool_choice.function.n',
    ],
    [{ messages: [{ role: 'user', content: 'x', nane: 'y' }] }, 'field_unknown', 'messages[0].nane'],
    [{ messages: [{ role: 'assistant', content: 'x', audio: { id: 'a' } }] }, 'field_invalid', 'messages[0].audio'],
    [
      { messages: [{ role: 'user', content: [{ type: 'text', text: 'x', txt: 'y' }] }] },
      'field_unknown',
      'messages[0].content[0].txt',
    ],
    [
      { messages: [{ role: 'assistant', tool_calls: [{ ...call, function: { ...call.function, args: '' } }] }] },
      'field_unknown',
      'messages[0].tool_calls[0].function.args',
    ],
    [{ temprature: null }, 'field_unknown', 'temprature'],
  ])('%j is refused, nested as it is', (fields, code, param) => {
    expect(refusal(() => chat(fields))).toEqual([code, param])
  })

  test('without model or messages names the missing field', () => {
    expect(refusal(() => parseChatRequest({ messages }))).toEqual(['field_invalid', 'model'])
    expect(refusal(() => parseChatRequest({ model: 'm' }))).toEqual(['field_invalid', 'messages'])
  })
})

describe('seeds', () => {
  test.each([
    [7, 7],
    [2 ** 53 - 1, 2 ** 53 - 1],
    [2 ** 53, 0],
    [2 ** 60 + 2 ** 20, 2 ** 20],
    [-1, 2 ** 53 - 1],
  ])('%i is %i to the engine', (given, folded) => {
    expect(chat({ seed: given }).request.sampling.seed).toBe(folded)
  })
})

describe('a completion body', () => {
  test.each([
    ['a', [{ kind: 'text', text: 'a' }]],
    [
      ['a', 'b'],
      [
        { kind: 'text', text: 'a' },
        { kind: 'text', text: 'b' },
      ],
    ],
    [[1, 2], [{ kind: 'tokens', tokens: [1, 2] }]],
    [
      [[1], [2, 3]],
      [
        { kind: 'tokens', tokens: [1] },
        { kind: 'tokens', tokens: [2, 3] },
      ],
    ],
  ])('prompt %j', (prompt, prompts) => {
    expect(complete({ prompt }).request.prompts).toEqual(prompts)
  })

  test('echo with logprobs scores the prompt', () => {
    const { request } = complete({ echo: true, logprobs: 2, max_tokens: 0 })
    expect(request).toMatchObject({ echoPrompt: true, promptLogprobs: true, alternatives: 2, maxNewTokens: 0 })
  })

  test.each([
    [{ prompt: '' }, 'field_invalid', 'prompt'],
    [{ prompt: [] }, 'field_invalid', 'prompt'],
    [{ prompt: [1, 'a'] }, 'field_invalid', 'prompt'],
    [{ prompt: [[-1]] }, 'field_invalid', 'prompt'],
    [{ suffix: 'end' }, 'field_invalid', 'suffix'],
    [{ n: 3, best_of: 2 }, 'field_invalid', 'best_of'],
    [{ best_of: 2, stream: true }, 'field_invalid', 'best_of'],
    [{ prompt: Array.from({ length: 100 }, () => 'x'), n: 2 }, 'field_invalid', 'n'],
  ])('%j is refused', (fields, code, param) => {
    expect(refusal(() => complete(fields))).toEqual([code, param])
  })
})

describe('a body made to be expensive', () => {
  const many = <T>(value: T): T[] => new Array<T>(1_000_000).fill(value)

  test('is refused before the schemas list what is wrong with each of its values', () => {
    expect(refusal(() => chat({ messages: many(1) }))).toEqual(['field_invalid', undefined])
    expect(refusal(() => chat({ stop: many(1) }))).toEqual(['field_invalid', undefined])
    expect(refusal(() => complete({ prompt: many([]) }))).toEqual(['field_invalid', undefined])
    expect(refusal(() => complete({ prompt: [...many(1), 'a'] }))).toEqual(['field_invalid', undefined])
    const wide = Object.fromEntries(many(0).map((_, i) => [`p${i}`, 0]))
    expect(refusal(() => chat({ chat_template_kwargs: wide }))).toEqual(['field_invalid', undefined])
  })

  test('long lists of token ids are prompts all the same', () => {
    expect(complete({ prompt: many(7) }).request.prompts).toEqual([{ kind: 'tokens', tokens: many(7) }])
    const two = complete({ prompt: [many(7), [8]] }).request.prompts
    expect(two.map((prompt) => prompt.kind === 'tokens' && prompt.tokens.length)).toEqual([1_000_000, 1])
    expect(refusal(() => complete({ prompt: [1, 2.5] }))).toEqual(['field_invalid', 'prompt'])
    expect(refusal(() => complete({ prompt: [-1] }))).toEqual(['field_invalid', 'prompt'])
    expect(refusal(() => complete({ prompt: [] }))).toEqual(['field_invalid', 'prompt'])
  })
})
