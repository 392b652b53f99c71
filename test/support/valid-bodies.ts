/** Valid bodies of every route with a body, each with most of its fields: what a fuzzer starts from. Answers stay short. */

export interface ValidBody {
  path: string
  body: object
}

const messages = [
  { role: 'system', content: 'You answer.' },
  { role: 'user', content: [{ type: 'text', text: 'Where is my order?' }] },
]
const schema = { type: 'object', properties: { city: { enum: ['Graz', 'Linz'] } }, required: ['city'] }
const tool = { type: 'function', function: { name: 'find', description: 'Finds', parameters: schema } }
const parameters = {
  max_new_tokens: 3,
  temperature: 0.7,
  top_k: 20,
  top_p: 0.9,
  repetition_penalty: 1.1,
  stop: ['end'],
  seed: 4,
  details: true,
  return_k_alternatives: 2,
}
const openAi = { max_tokens: 3, temperature: 0.5, top_p: 0.9, seed: 3, stop: ['x'], logit_bias: { 5: -10 }, user: 'u' }

export const VALID_BODIES: readonly ValidBody[] = [
  { path: '/generate', body: { inputs: 'Hello', parameters } },
  { path: '/generate', body: { inputs: 'Hello', parameters: { ...parameters, adapter_id: 'triage', truncate: 5 } } },
  {
    path: '/generate',
    body: {
      inputs: 'Hello',
      parameters: {
        max_new_tokens: 3,
        adapter_source: 'local',
        merged_adapters: {
          ids: ['orders-json', 'pirate'],
          weights: [0.5, 0.5],
          merge_strategy: 'ties',
          density: 0.5,
          majority_sign_method: 'total',
        },
      },
    },
  },
  { path: '/generate', body: { inputs: 'Hi', parameters: { max_new_tokens: 2, best_of: 2, do_sample: true } } },
  {
    path: '/generate',
    body: { inputs: 'Hi', parameters: { max_new_tokens: 8, response_format: { type: 'json_object', schema } } },
  },
  { path: '/generate_stream', body: { inputs: 'Hello', parameters: { ...parameters, ignore_eos_token: true } } },
  { path: '/', body: { inputs: 'Hello', stream: true, parameters: { max_new_tokens: 2 } } },
  {
    path: '/invocations',
    body: { inputs: 'Hello', stream: false, parameters: { decoder_input_details: true, max_new_tokens: 2 } },
  },
  {
    path: '/v1/chat/completions',
    body: { model: 'pirate', messages, ...openAi, n: 2, logprobs: true, top_logprobs: 2 },
  },
  {
    path: '/v1/chat/completions',
    body: { model: 'pirate', messages, max_tokens: 3, stream: true, stream_options: { include_usage: true } },
  },
  {
    path: '/v1/chat/completions',
    body: {
      model: 'triage',
      messages,
      max_tokens: 12,
      tools: [tool],
      tool_choice: 'required',
      parallel_tool_calls: false,
    },
  },
  {
    path: '/v1/chat/completions',
    body: {
      model: 'triage',
      messages,
      max_completion_tokens: 12,
      response_format: { type: 'json_schema', json_schema: { name: 'place', schema, strict: true } },
    },
  },
  {
    path: '/v1/completions',
    body: { model: 'redact', prompt: ['One', 'Two'], ...openAi, n: 1, best_of: 2, logprobs: 1 },
  },
  { path: '/v1/completions', body: { model: 'redact', prompt: [5, 6, 7], max_tokens: 2, echo: true, stream: true } },
  {
    path: '/v1/embeddings',
    body: { model: 'triage', input: ['one', 'two'], encoding_format: 'base64', dimensions: 8 },
  },
  { path: '/embed', body: { inputs: 'Hello', parameters: { adapter_id: 'triage' } } },
  { path: '/tokenize', body: { inputs: 'Hello there', add_special_tokens: false } },
]
