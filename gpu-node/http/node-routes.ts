/** What the node says of itself: health, info, metrics; and the order to drain. */

import type { Hono } from 'hono'
import type { NodeContext } from './node-context.ts'
import type { TicketGuard } from './ticket-guard.ts'

export function addNodeRoutes(app: Hono, context: NodeContext, guard: TicketGuard): void {
  const { engine, identity, metrics } = context

  /** Open: no more than a load balancer needs. */
  app.get('/health', (c) => {
    const status = !engine.healthy ? 'failed' : context.draining() ? 'draining' : 'ok'
    return c.json({ status }, status === 'ok' ? 200 : 503)
  })

  app.get('/info', async (c) => {
    await guard(c.req.raw.headers, ['info', 'admin'])
    return c.json(nodeInfo(context))
  })

  app.get('/metrics', async (c) => {
    await guard(c.req.raw.headers, ['info', 'admin'])
    const { contentType, text } = await metrics.render()
    return c.body(text, 200, { 'content-type': contentType })
  })

  app.post('/drain', async (c) => {
    await guard(c.req.raw.headers, ['admin'])
    context.startDrain()
    return c.json({ nodeId: identity.nodeId, draining: true }, 202)
  })
}

/** LoRAX's fields, then Ringlet's. Fields of LoRAX's own scheduler that have no counterpart are `null`. */
function nodeInfo({ identity, limits, engine, draining }: NodeContext): object {
  const { spec } = engine
  const stats = engine.stats()
  return {
    model_id: identity.baseModel,
    model_sha: identity.baseDigest,
    model_dtype: identity.dtype,
    model_device_type: identity.device,
    model_pipeline_tag: 'text-generation',
    max_concurrent_requests: spec.maxRows,
    max_best_of: limits.maxBestOf,
    max_stop_sequences: limits.maxStopSequences,
    max_input_length: spec.maxPositions - 1,
    max_total_tokens: spec.maxPositions,
    max_batch_total_tokens: spec.maxRows * spec.maxPositions,
    waiting_served_ratio: null,
    max_waiting_tokens: null,
    validation_workers: null,
    // Waiting sequences are prefilled as soon as rows are free.
    eager_prefill: true,
    version: identity.version,
    sha: null,
    docker_label: null,
    request_logger_url: null,
    node_id: identity.nodeId,
    vocab_size: spec.vocabSize,
    adapter_slots: spec.adapterSlots,
    resident_adapters: stats.residentAdapters.length,
    running: stats.running,
    waiting: stats.waiting,
    free_rows: stats.freeRows,
    draining: draining(),
  }
}
