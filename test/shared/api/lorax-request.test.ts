import { describe, expect, test } from 'vitest'
import { parseLoraxRequest } from '../../../shared/api/lorax-request.ts'
import { RingletError, toLoraxError } from '../../../shared/errors.ts'

const refusal = (run: () => unknown): RingletError => {
  try {
    run()
  } catch (error) {
    if (error instanceof RingletError) {
      return error
    }
    throw error
  }
  throw new Error('was accepted')
}
const withParameters = (parameters: object, route: '/generate' | '/generate_stream' = '/generate') =>
  parseLoraxRequest({ inputs: 'Hi', parameters }, route)
const messageOf = (parameters: object, route?: '/generate' | '/generate_stream') =>
  toLoraxError(refusal(() => withParameters(parameters, route))).error

describe('a LoRAX body', () => {
  test('without parameters is greedy, on the base, and keeps stop strings', () => {
    const parsed = parseLoraxRequest({ inputs: 'Hi' }, '/generate')
    expect(parsed.adapter).toEqual({})
    expect(parsed.request.prompts).toEqual([{ kind: 'text', text: 'Hi' }])
    expect(parsed.request.sampling.doSample).toBe(false)
    expect(parsed.request.keepStopText).toBe(true)
  })

  test('null means absent, as in LoRAX', () => {
    const parsed = withParameters({ adapter_id: null, temperature: null, stop: null, merged_adapters: null })
    expect(parsed.adapter).toEqual({})
    expect(parsed.request.stop).toEqual([])
  })

  test.each([
    [{ temperature: -1 }, '`temperature` must be non-negative'],
    [{ repetition_penalty: 0 }, '`repetition_penalty` must be strictly positive'],
    [{ frequency_penalty: 2.5 }, '`frequency_penalty` must be >= -2.0 and <= 2.0'],
    [{ presence_penalty: -3 }, '`presence_penalty` must be >= -2.0 and <= 2.0'],
    [{ top_k: 0 }, '`top_k` must be strictly positive'],
    [{ top_p: 1.1 }, '`top_p` must be > 0.0 and < 1.0'],
    [{ typical_p: 1 }, '`typical_p` must be > 0.0 and < 1.0'],
    [{ max_new_tokens: 0 }, '`max_new_tokens` must be strictly positive'],
    [{ return_k_alternatives: 0 }, '`return_k_alternatives` must be strictly positive'],
    [{ return_k_alternatives: 65 }, '`return_k_alternatives` must be <= 64. Given: 65'],
    [{ best_of: 3, do_sample: true }, '`best_of` must be > 0 and <= 2. Given: 3'],
    [{ best_of: 2 }, 'you must use sampling when `best_of` is > 1'],
    [{ best_of: 2, do_sample: true, seed: 1 }, '`seed` must not be set when `best_of` > 1'],
    [{ stop: ['a', 'b', 'c', 'd', 'e'] }, '`stop` supports up to 4 stop sequences. Given: 5'],
    [
      { adapter_id: 'a', merged_adapters: { ids: ['a'], weights: [1] } },
      'at most one of `adapter_id` or `adapters` may be provided',
    ],
    [{ merged_adapters: { ids: [], weights: [] } }, 'at least one adapter ID must be provided when setting `adapters`'],
    [
      { merged_adapters: { ids: ['a', 'b'], weights: [1] } },
      'number of adapter IDs must match number of adapter weights',
    ],
  ])('%j is refused in LoRAX’s words', (parameters, message) => {
    expect(messageOf(parameters)).toBe(`Input validation error: ${message}`)
  })

  test('streams refuse best_of and prompt details', () => {
    expect(messageOf({ best_of: 2, do_sample: true }, '/generate_stream')).toContain(
      '`best_of` != 1 is not supported when streaming tokens',
    )
    expect(messageOf({ decoder_input_details: true }, '/generate_stream')).toContain(
      '`decoder_input_details` == true is not supported when streaming tokens',
    )
  })

  test('top_p of 1 is taken although the message says otherwise', () => {
    expect(withParameters({ top_p: 1 }).request.sampling.doSample).toBe(false)
  })

  test.each([{ temperature: 0.5 }, { top_k: 5 }, { top_p: 0.9 }, { typical_p: 0.9 }, { do_sample: true }])(
    '%j samples',
    (parameters) => {
      expect(withParameters(parameters).request.sampling.doSample).toBe(true)
    },
  )

  test('temperature 0 is greedy, whatever else asks for sampling', () => {
    expect(withParameters({ temperature: 0, do_sample: true, top_k: 3 }).request.sampling.doSample).toBe(false)
  })

  test('a misspelt parameter is refused with the one that is meant', () => {
    const error = refusal(() => withParameters({ max_new_token: 5 }))
    expect(error.code).toBe('field_unknown')
    expect(error.param).toBe('parameters.max_new_token')
    expect(error.message).toContain('`max_new_tokens`')
  })

  test.each(['adapter_name', 'adapterId', 'adapter_id', 'lora', 'model', 'temperature'])(
    '`%s` beside parameters is refused: it would be ignored otherwise',
    (field) => {
      const error = refusal(() => parseLoraxRequest({ inputs: 'Hi', [field]: 'x' }, '/generate'))
      expect(error.code).toBe('field_unknown')
      expect(error.param).toBe(field)
      expect(error.message).toContain('parameters.')
    },
  )

  test('other unknown fields are told as ignored', () => {
    expect(parseLoraxRequest({ inputs: 'Hi', trace: 1 }, '/generate').ignored).toEqual(['trace'])
  })

  test.each([
    [{}, 'inputs'],
    [{ inputs: 5 }, 'inputs'],
    [{ inputs: 'x', parameters: { top_p: 'high' } }, 'parameters.top_p'],
    [{ inputs: 'x', parameters: { stop: 'one' } }, 'parameters.stop'],
    [{ inputs: 'x', parameters: { merged_adapters: { ids: [1], weights: [1] } } }, 'parameters.merged_adapters.ids[0]'],
    [{ inputs: 'x', parameters: { api_token: 'a b' } }, 'parameters.api_token'],
  ])('%j names the field in `param`', (body, param) => {
    const error = refusal(() => parseLoraxRequest(body, '/generate'))
    expect([error.code, error.param]).toEqual(['field_invalid', param])
  })

  test.each([[null], ['text'], [[]], [3]])('%j is no body', (body) => {
    expect(refusal(() => parseLoraxRequest(body, '/generate')).code).toBe('body_malformed')
  })

  test('nesting has a bound', () => {
    let deep: unknown = {}
    for (let i = 0; i < 50_000; i++) {
      deep = [deep]
    }
    expect(refusal(() => withParameters({ response_format: { type: 'json_object', schema: { deep } } })).code).toBe(
      'field_invalid',
    )
  })

  test('only the compatibility routes read `stream`', () => {
    expect(parseLoraxRequest({ inputs: 'x', stream: true }, '/').stream).toBe(true)
    expect(parseLoraxRequest({ inputs: 'x', stream: true }, '/generate').stream).toBe(false)
    expect(parseLoraxRequest({ inputs: 'x' }, '/generate_stream').stream).toBe(true)
  })
})

describe('merged adapters', () => {
  const merge = (fields: object) =>
    withParameters({ merged_adapters: { ids: ['a', 'b'], weights: [1, 0.5], ...fields } })

  test('carry their own sources and tokens', () => {
    const parsed = merge({ sources: ['local', null], api_tokens: [null, 't'], merge_strategy: 'TIES', density: 0.5 })
    expect(parsed.adapter.merge).toEqual({
      strategy: 'ties',
      density: 0.5,
      parts: [
        { id: 'a', weight: 1, source: 'local' },
        { id: 'b', weight: 0.5, token: 't' },
      ],
    })
  })

  test.each([
    [{ merge_strategy: 'ties' }, 'density'],
    [{ merge_strategy: 'dare_linear', density: 0 }, 'density'],
    [{ merge_strategy: 'dare_ties', density: 1.5 }, 'density'],
    [{ merge_strategy: 'average' }, 'merge_strategy'],
    [{ majority_sign_method: 'loudest' }, 'majority_sign_method'],
  ])('%j is refused', (fields, name) => {
    const error = refusal(() => merge(fields))
    expect([error.code, error.param]).toEqual(['merge_invalid', `parameters.merged_adapters.${name}`])
  })

  test('a misspelt field is refused', () => {
    expect(refusal(() => merge({ densty: 0.5 })).message).toContain('`density`')
  })
})

test.each([
  ['adapter_name', 'adapter_id'],
  ['lora_path', 'adapter_id'],
  ['max_tokens', 'max_new_tokens'],
  ['top-p', 'top_p'],
])('an unknown parameter `%s` is refused, and the one that may be meant is named', (name, meant) => {
  const body = { inputs: 'Hi', parameters: { [name]: 'x' } }
  expect(() => parseLoraxRequest(body, '/generate')).toThrow(
    `unknown field \`parameters.${name}\`; did you mean \`${meant}\`?`,
  )
})
