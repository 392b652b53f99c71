/**
 * Spans of generating requests, exported by OTLP over HTTP: one for the request below the caller's `traceparent` (W3C Trace
 * Context), and one for each part of its time. No prompt, no text and no token is in them.
 */

import { type Context, ROOT_CONTEXT, SpanKind, SpanStatusCode, TraceFlags, trace } from '@opentelemetry/api'
import { selectionKey } from '../../shared/adapter-ref.ts'
import type { EndedGeneration } from './generation-log.ts'

export interface GenerationTracer {
  /** Called once, when the request has ended. */
  ended(generation: EndedGeneration, traceparent: string | undefined): void
  /** Sends what is still here. */
  close(): Promise<void>
}

export interface TraceExport {
  /** Base address of the collector, as in OTEL_EXPORTER_OTLP_ENDPOINT; headers are the SDK's OTEL_EXPORTER_OTLP_HEADERS. */
  endpoint: string
  nodeId: string
  version: string
}

/** The SDK is loaded by nodes that export only. */
export async function openTraceExport({ endpoint, nodeId, version }: TraceExport): Promise<GenerationTracer> {
  const [sdk, { OTLPTraceExporter }, { resourceFromAttributes }] = await Promise.all([
    import('@opentelemetry/sdk-trace-node'),
    import('@opentelemetry/exporter-trace-otlp-http'),
    import('@opentelemetry/resources'),
  ])
  const exporter = new OTLPTraceExporter({ url: `${endpoint.replace(/\/+$/, '')}/v1/traces` })
  const provider = new sdk.NodeTracerProvider({
    resource: resourceFromAttributes({
      'service.name': 'ringlet-node',
      'service.instance.id': nodeId,
      'service.version': version,
    }),
    // A caller that is not traced itself has switched its sampling flag off.
    sampler: new sdk.ParentBasedSampler({ root: new sdk.AlwaysOnSampler() }),
    spanProcessors: [new sdk.BatchSpanProcessor(exporter)],
  })
  const tracer = provider.getTracer('ringlet-node', version)
  return {
    ended(generation, traceparent) {
      const { startedAt, endedAt, parts } = spansOf(generation)
      const span = tracer.startSpan(
        'generate',
        { startTime: startedAt, kind: SpanKind.SERVER, attributes: attributesOf(generation) },
        parentOf(traceparent),
      )
      const inside = trace.setSpan(ROOT_CONTEXT, span)
      for (const { name, from, to } of parts) {
        tracer.startSpan(name, { startTime: from }, inside).end(to)
      }
      if (generation.outcome !== 'ok') {
        span.setStatus({ code: SpanStatusCode.ERROR, message: generation.outcome })
      }
      span.end(endedAt)
    },
    close: () => provider.shutdown(),
  }
}

interface Part {
  name: string
  /** Unix ms. */
  from: number
  to: number
}

/** The parts follow one another: template and tokens, adapter, queue, prompt, tokens. */
export function spansOf({ timings }: EndedGeneration): { startedAt: number; endedAt: number; parts: Part[] } {
  const { arrivedAt, preparedAt, loadMs, queuedMs, prefillMs, firstTokenAt, endedAt = preparedAt } = timings
  const parts: Part[] = [{ name: 'prepare', from: arrivedAt, to: preparedAt }]
  let at = preparedAt
  for (const [name, ms] of [
    ['load_adapter', loadMs],
    ['queue', queuedMs],
    ['prefill', prefillMs],
  ] as const) {
    if (ms !== undefined) {
      parts.push({ name, from: at, to: Math.min(at + ms, endedAt) })
      at = Math.min(at + ms, endedAt)
    }
  }
  if (firstTokenAt !== undefined) {
    parts.push({ name: 'decode', from: firstTokenAt, to: endedAt })
  }
  return { startedAt: arrivedAt, endedAt, parts }
}

function attributesOf(generation: EndedGeneration): Record<string, string | number> {
  const { requestId, tenantId, adapter, tier, sequences, promptTokens, cachedTokens, generatedTokens } = generation
  return {
    'ringlet.request_id': requestId,
    'ringlet.tenant': tenantId,
    'ringlet.adapter': selectionKey(adapter),
    ...(tier === undefined ? {} : { 'ringlet.adapter_tier': tier }),
    'ringlet.sequences': sequences,
    'ringlet.cached_tokens': cachedTokens,
    'ringlet.outcome': generation.outcome,
    'gen_ai.usage.input_tokens': promptTokens,
    'gen_ai.usage.output_tokens': generatedTokens,
  }
}

const TRACEPARENT = /^00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$/

function parentOf(traceparent: string | undefined): Context {
  const [, traceId, spanId, flags] = TRACEPARENT.exec(traceparent ?? '') ?? []
  if (traceId === undefined || spanId === undefined || flags === undefined) {
    return ROOT_CONTEXT
  }
  const traceFlags = Number.parseInt(flags, 16) & TraceFlags.SAMPLED
  return trace.setSpanContext(ROOT_CONTEXT, { traceId, spanId, traceFlags, isRemote: true })
}
