/** The node's Prometheus metrics, LoRAX's series beside its own. Labels are digests, tiers and codes: no name, token or prompt. */

import { Counter, Gauge, Histogram, Registry } from 'prom-client'
import type { AdapterTier } from '../shared/fleet.ts'
import type { EngineStats } from './engine/engine-types.ts'
import { createLoraxMetrics, type EndedGeneration } from './lorax-metrics.ts'

/** Adapters with their own label; those that come later share `other`, so that a node's series stay bounded. */
const MAX_ADAPTER_LABELS = 200

const SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60]

export interface GenerationMeter {
  started(queuedMs: number, promptTokens: number, cachedTokens: number): void
  /** `at` and `arrivedAt`: ms on the same clock. */
  token(choice: number, at: number, arrivedAt: number): void
  /** All its sequences have their answer. */
  ended(generation: EndedGeneration): void
}

export interface NodeMetrics {
  generation(adapterDigest: string | undefined): GenerationMeter
  adapterLoaded(tier: AdapterTier, loadMs: number): void
  /** `code`: the error code, or `ok`. */
  requestEnded(route: string, code: string, seconds: number): void
  render(): Promise<{ contentType: string; text: string }>
}

export interface MetricsSources {
  engineStats: () => EngineStats
  draining: () => boolean
  /** Prompt and generated tokens of a sequence, at most. */
  maxPositions: number
}

export function createNodeMetrics(sources: MetricsSources): NodeMetrics {
  const registry = new Registry()
  const registers = [registry]
  const histogram = <Label extends string>(name: string, help: string, labelNames: Label[]) =>
    new Histogram({ name, help, labelNames, buckets: SECONDS, registers })
  const counter = <Label extends string>(name: string, help: string, labelNames: Label[]) =>
    new Counter({ name, help, labelNames, registers })

  const requests = counter('ringlet_requests_total', 'Requests by route and outcome', ['route', 'code'])
  const duration = histogram('ringlet_request_seconds', 'Arrival to the end of the reply', ['route'])
  const firstToken = histogram('ringlet_time_to_first_token_seconds', 'Arrival to first token', ['adapter'])
  const interToken = histogram('ringlet_inter_token_seconds', 'Between two tokens of a sequence', ['adapter'])
  const queued = histogram('ringlet_queue_seconds', 'Submission to the first step of a sequence', ['adapter'])
  const loads = histogram('ringlet_adapter_load_seconds', 'Asking for an adapter to holding it', ['tier'])
  const promptTokens = counter('ringlet_prompt_tokens_total', 'Prompt tokens of started sequences', ['adapter'])
  const cachedTokens = counter('ringlet_cached_prompt_tokens_total', 'Prompt tokens taken from saved prefixes', [
    'adapter',
  ])
  const generated = counter('ringlet_generated_tokens_total', 'Generated tokens', ['adapter'])
  addEngineGauges(registers, sources)
  const lorax = createLoraxMetrics(registers, sources)

  const labels = new Set<string>()
  const labelOf = (digest: string | undefined): string => {
    if (digest === undefined) {
      return 'base'
    }
    const label = digest.slice(0, 16)
    if (labels.has(label) || labels.size < MAX_ADAPTER_LABELS) {
      labels.add(label)
      return label
    }
    return 'other'
  }

  return {
    generation: (digest) => {
      const adapter = labelOf(digest)
      const lastAt = new Map<number, number>()
      return {
        started: (queuedMs, prompt, cached) => {
          queued.observe({ adapter }, queuedMs / 1000)
          promptTokens.inc({ adapter }, prompt)
          cachedTokens.inc({ adapter }, cached)
        },
        token: (choice, at, arrivedAt) => {
          const last = lastAt.get(choice)
          const seconds = (at - (last ?? arrivedAt)) / 1000
          const target = last === undefined ? firstToken : interToken
          target.observe({ adapter }, seconds)
          generated.inc({ adapter })
          lastAt.set(choice, at)
        },
        ended: lorax.generationEnded,
      }
    },
    adapterLoaded: (tier, loadMs) => loads.observe({ tier }, loadMs / 1000),
    requestEnded: (route, code, seconds) => {
      lorax.requestEnded(route, code)
      requests.inc({ route, code })
      duration.observe({ route }, seconds)
    },
    render: async () => ({ contentType: registry.contentType, text: await registry.metrics() }),
  }
}

/** Read when scraped. */
function addEngineGauges(registers: Registry[], { engineStats, draining }: MetricsSources): void {
  const gauge = (name: string, help: string, read: (stats: EngineStats) => number): void => {
    new Gauge({
      name,
      help,
      registers,
      collect() {
        this.set(read(engineStats()))
      },
    })
  }
  gauge('ringlet_engine_rows', 'Sequences that can run at once', (stats) => stats.maxRows)
  gauge('ringlet_engine_free_rows', 'Rows that no sequence holds', (stats) => stats.freeRows)
  gauge('ringlet_engine_running', 'Sequences that run', (stats) => stats.running)
  gauge('ringlet_engine_waiting', 'Sequences that wait', (stats) => stats.waiting)
  gauge('ringlet_engine_steps', 'Steps since start', (stats) => stats.steps)
  gauge('ringlet_engine_prefill_tokens', 'Tokens prefilled since start', (stats) => stats.prefillTokens)
  gauge('ringlet_engine_decode_tokens', 'Tokens decoded since start', (stats) => stats.decodeTokens)
  gauge('ringlet_engine_prefix_hit_tokens', 'Prompt tokens not prefilled since start', (stats) => stats.prefixHitTokens)
  gauge('ringlet_engine_max_abort_steps', 'Most steps from an abort to a free row', (stats) => stats.maxAbortSteps)
  gauge('ringlet_engine_resident_adapters', 'Adapters in engine slots', (stats) => stats.residentAdapters.length)
  gauge('ringlet_engine_resident_bytes', 'Bytes of those', (stats) =>
    stats.residentAdapters.reduce((sum, adapter) => sum + adapter.bytes, 0),
  )
  gauge('ringlet_engine_invariant_violations', 'Found by the idle check', (stats) => stats.invariantViolations.length)
  gauge('ringlet_node_draining', '1 while the node takes no new requests', () => (draining() ? 1 : 0))
}
