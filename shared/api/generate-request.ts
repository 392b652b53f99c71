/** What every generating route means, whatever its wire shape: one normalized request, and who should answer it. */

/** A value as JSON has it. */
export type JsonValue = null | boolean | number | string | JsonValue[] | { [key: string]: JsonValue }

export type ApiStyle = 'lorax' | 'openai'

/** The generating routes, by path. `/` and `/invocations` are LoRAX's compatibility routes. */
export const GENERATE_ROUTES = [
  '/generate',
  '/generate_stream',
  '/',
  '/invocations',
  '/v1/chat/completions',
  '/v1/completions',
] as const
export type GenerateRoute = (typeof GENERATE_ROUTES)[number]
export type LoraxRoute = Exclude<GenerateRoute, `/v1/${string}`>

/** One adapter of a merge, as the caller names it. */
export interface MergePartFields {
  id: string
  source?: string
  /** The caller's token for this adapter's home. */
  token?: string
  weight: number
}

export interface MergeFields {
  parts: MergePartFields[]
  strategy: 'linear' | 'ties' | 'dare_linear' | 'dare_ties' | 'cat'
  /** (0, 1]; present for every strategy but `linear` and `cat`. */
  density?: number
  signMethod?: 'total' | 'frequency'
  seed?: number
}

/**
 * How a request names what it runs on. On LoRAX routes: no `adapterId` and no `merge` is the base. On `/v1`: `model`
 * is the base model's name or an adapter's; with `merge` it must be the base model's.
 */
export interface AdapterFields {
  adapterId?: string
  model?: string
  /** As written; `parseAdapterName` checks it. */
  adapterSource?: string
  /** The caller's token for the adapter's home, never Ringlet's own. */
  apiToken?: string
  merge?: MergeFields
}

/** A chat message in OpenAI's spelling. Content parts are joined; further fields reach the chat template as given. */
export interface ChatMessage {
  role: string
  content: string | null
  name?: string
  tool_calls?: ToolCall[]
  tool_call_id?: string
  [field: string]: unknown
}

export interface ToolCall {
  id: string
  type: 'function'
  /** `arguments` is JSON text. */
  function: { name: string; arguments: string }
}

export interface ToolDefinition {
  type: 'function'
  function: { name: string; description?: string; parameters?: JsonValue; strict?: boolean }
}

export type ToolChoice = { kind: 'auto' } | { kind: 'none' } | { kind: 'required' } | { kind: 'named'; name: string }

export interface ToolUse {
  tools: ToolDefinition[]
  choice: ToolChoice
  parallel: boolean
  /** LoRAX's `tool_prompt`: the text before the tools where the chat template has no place for them. */
  prompt?: string
}

export type PromptInput =
  | { kind: 'text'; text: string }
  | { kind: 'tokens'; tokens: number[] }
  | {
      kind: 'chat'
      messages: ChatMessage[]
      /** Further variables of the chat template, e.g. `enable_thinking`. */
      templateVariables: Record<string, JsonValue>
    }

/** What the answer must look like; absent: free text. */
export type OutputFormat =
  | { kind: 'json_object' }
  | { kind: 'json_schema'; schema: JsonValue; strict: boolean }
  | { kind: 'regex'; pattern: string }
  | { kind: 'grammar'; ebnf: string }

/** Sampling as asked; absent: off or the default. Ranges are checked by the parser. */
export interface SamplingFields {
  doSample: boolean
  temperature: number
  topK?: number
  topP?: number
  minP?: number
  typicalP?: number
  repetitionPenalty?: number
  frequencyPenalty?: number
  presencePenalty?: number
  logitBias?: [tokenId: number, bias: number][]
  watermark: boolean
  /** In [0, 2^53). */
  seed?: number
}

export interface GenerateRequest {
  /** At least one. Only completions have several. */
  prompts: PromptInput[]
  /** Choices returned for each prompt. */
  choices: number
  /** Sequences run for each prompt, at least `choices`; those with the highest mean token logprob are returned. */
  bestOf: number
  sampling: SamplingFields
  /** Absent: what the model's context leaves. */
  maxNewTokens?: number
  stop: string[]
  /** LoRAX keeps the matched stop string in the text; OpenAI's routes cut it off. */
  keepStopText: boolean
  ignoreEos: boolean
  /** Keep only the last so many prompt tokens; its range depends on the model, so the node checks it. */
  truncate?: number
  /** Put the prompt's text in front of the answer. */
  echoPrompt: boolean
  promptLogprobs: boolean
  /** Alternatives carried with each token. */
  alternatives: number
  format?: OutputFormat
  toolUse?: ToolUse
}

/** What a parser returns, whatever the route. */
export interface ParsedRequest {
  route: GenerateRoute
  api: ApiStyle
  stream: boolean
  adapter: AdapterFields
  request: GenerateRequest
  /** Fields that were understood and have no effect on the answer; told in `x-ringlet-ignored`. */
  ignored: string[]
}

/** Most sequences that one request may start: prompts × best_of. */
export const MAX_SEQUENCES_PER_REQUEST = 128

/** Seeds are at most 53 bits in the engine; larger and negative ones fold into the range, equal ones to equal ones. */
export function foldSeed(seed: number): number {
  const range = 2 ** 53
  const rest = seed % range
  // Adding the range to a number that is not negative would pass 2^53, and round.
  return rest < 0 ? rest + range : rest
}
