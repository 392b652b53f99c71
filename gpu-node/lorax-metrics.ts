/**
 * LoRAX's own series (router/src in https://github.com/predibase/lorax), under its names, units and buckets, so that a
 * dashboard made for LoRAX finds them. Of its scheduler's inner numbers only those that mean something here.
 */

import { Counter, exponentialBuckets, Gauge, Histogram, linearBuckets, type Registry, Summary } from 'prom-client'
import { ERROR_KINDS, type ErrorCode } from '../shared/errors.ts'
import type { EngineStats } from './engine/engine-types.ts'

/** Of a request whose sequences have all ended. Milliseconds. */
export interface EndedGeneration {
  totalMs: number
  /** Parsing, template, tokens. */
  validationMs: number
  /** Waiting for the adapter and for a row. */
  queueMs: number
  /** Of each of its prompts. */
  inputLengths: readonly number[]
  generatedTokens: number
  maxNewTokens: number
}

export interface LoraxMetrics {
  /** `code`: an error's, `ok` or `client_gone`. */
  requestEnded(route: string, code: string): void
  generationEnded(ended: EndedGeneration): void
}

export interface LoraxMetricsSources {
  engineStats: () => EngineStats
  maxPositions: number
}

/** Those that LoRAX counts. */
const COUNTED_ROUTES = new Set([
  '/',
  '/invocations',
  '/generate',
  '/generate_stream',
  '/embed',
  '/v1/completions',
  '/v1/chat/completions',
  '/v1/embeddings',
])

const FAILURES = [
  ...['validation', 'overloaded', 'generation', 'incomplete', 'template', 'dropped', 'bad_request'],
  ...['download_adapter', 'load_adapter'],
] as const
type Failure = (typeof FAILURES)[number]

const BY_CODE: Partial<Record<ErrorCode, Failure>> = {
  body_malformed: 'bad_request',
  body_too_large: 'bad_request',
  content_type_unsupported: 'bad_request',
  adapter_not_found: 'download_adapter',
  model_not_found: 'download_adapter',
  adapter_home_unreachable: 'download_adapter',
  adapter_not_ready: 'download_adapter',
  adapter_refused: 'load_adapter',
  adapter_too_large: 'load_adapter',
  adapter_capacity: 'load_adapter',
  stream_broken: 'incomplete',
  template_failed: 'template',
}

export function createLoraxMetrics(registers: Registry[], sources: LoraxMetricsSources): LoraxMetrics {
  const seconds = exponentialBuckets(0.00015, 1.5, 35)
  const tokens = linearBuckets(sources.maxPositions / 100, sources.maxPositions / 100, 100)
  const counter = (name: string, help: string) => new Counter({ name, help, registers })
  const histogram = (name: string, help: string, buckets: number[]) => new Histogram({ name, help, buckets, registers })

  const count = counter('lorax_request_count', 'Requests')
  const success = counter('lorax_request_success', 'Requests that were answered')
  const failure = new Counter({
    name: 'lorax_request_failure',
    help: 'Requests that were refused, failed or left',
    labelNames: ['err'],
    registers,
  })
  for (const err of FAILURES) {
    failure.inc({ err }, 0)
  }
  const duration = histogram('lorax_request_duration', 'Seconds from arrival to the last token', seconds)
  const validation = histogram('lorax_request_validation_duration', 'Seconds to parse and to encode', seconds)
  const queue = histogram('lorax_request_queue_duration', 'Seconds for the adapter and for a row', seconds)
  const inference = histogram('lorax_request_inference_duration', 'Seconds of the rest', seconds)
  const perToken = histogram('lorax_request_mean_time_per_token_duration', 'Inference seconds a token', seconds)
  const inputLength = histogram('lorax_request_input_length', 'Prompt tokens', tokens)
  const generated = histogram('lorax_request_generated_tokens', 'Generated tokens', tokens)
  const maxNew = histogram('lorax_request_max_new_tokens', 'Tokens that might have been generated', tokens)
  const inputs = new Summary({ name: 'lorax_request_input_count', help: 'Prompts of a request', registers })
  addEngineSeries(registers, sources.engineStats)

  return {
    requestEnded: (route, code) => {
      if (!COUNTED_ROUTES.has(route)) {
        return
      }
      count.inc()
      if (code === 'ok') {
        success.inc()
      } else {
        failure.inc({ err: failureOf(code) })
      }
    },
    generationEnded: (ended) => {
      const inferenceMs = Math.max(0, ended.totalMs - ended.validationMs - ended.queueMs)
      duration.observe(ended.totalMs / 1000)
      validation.observe(ended.validationMs / 1000)
      queue.observe(ended.queueMs / 1000)
      inference.observe(inferenceMs / 1000)
      perToken.observe(inferenceMs / 1000 / Math.max(1, ended.generatedTokens))
      for (const length of ended.inputLengths) {
        inputLength.observe(length)
      }
      inputs.observe(ended.inputLengths.length)
      generated.observe(ended.generatedTokens)
      maxNew.observe(ended.maxNewTokens)
    },
  }
}

/** Read when scraped. A step prefills and decodes at once, so all steps count as LoRAX's `decode`. */
function addEngineSeries(registers: Registry[], engineStats: () => EngineStats): void {
  const read = (name: string, help: string, value: (stats: EngineStats) => number): void => {
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(value(engineStats()))
      },
    })
  }
  read('lorax_queue_length', 'Sequences that wait for a row', (stats) => stats.waiting)
  read('lorax_batch_current_size', 'Sequences that run', (stats) => stats.running)
  for (const name of ['lorax_batch_inference_count', 'lorax_batch_inference_success']) {
    new Counter({
      name,
      help: 'Engine steps since start',
      labelNames: ['method'],
      registers,
      collect() {
        this.reset()
        this.inc({ method: 'decode' }, engineStats().steps)
      },
    })
  }
}

function failureOf(code: string): Failure {
  if (code === 'client_gone') {
    return 'dropped'
  }
  if (!Object.hasOwn(ERROR_KINDS, code)) {
    return 'generation'
  }
  // Just looked up.
  const known = code as ErrorCode
  const { loraxType, status } = ERROR_KINDS[known]
  const byType = loraxType === 'overloaded' ? 'overloaded' : status < 500 ? 'validation' : 'generation'
  return BY_CODE[known] ?? byType
}
