/** The operator's hold on this node's adapters: list, prefetch, pin, unpin, unload. The ticket says which adapter. */

import type { Context, Hono } from 'hono'
import { z } from 'zod'
import { selectionKey } from '../../shared/adapter-ref.ts'
import { parseBody } from '../../shared/api/body-parse.ts'
import { RingletError } from '../../shared/errors.ts'
import type { Ticket } from '../../shared/ticket.ts'
import type { AcquireOptions, AdaptedSelection, AdapterListing } from '../adapters/adapter-store.ts'
import { readAdapterTokens } from './delivered.ts'
import type { NodeContext } from './node-context.ts'
import { readJsonBody } from './read-body.ts'
import type { TicketGuard } from './ticket-guard.ts'

/** `adapter`: a ref's spelling or a digest, for what is already here; without it the ticket's selection counts. */
const nameSchema = z.object({ adapter: z.string().min(1).max(8192).optional() })

export function addAdapterRoutes(app: Hono, context: NodeContext, guard: TicketGuard): void {
  const { adapters, engine } = context
  const listed = (listing: AdapterListing): AdapterListing =>
    engine.isResident(listing.digest) ? { ...listing, tier: 'engine' } : listing
  const readName = async (c: Context, ticket: Ticket): Promise<string> => {
    const body = parseBody(nameSchema, await readJsonBody(c.req.raw, context.limits.maxBodyBytes))
    return body.adapter ?? selectionKey(selectionOf(ticket))
  }
  const optionsOf = (c: Context, ticket: Ticket): AcquireOptions => ({
    tenantId: ticket.tenantId,
    tokens: readAdapterTokens(c.req.raw.headers),
    signal: c.req.raw.signal,
  })

  app.get('/adapters', async (c) => {
    await guard(c.req.raw.headers, ['info', 'admin'])
    return c.json({ adapters: adapters.list().map(listed) })
  })

  app.post('/adapters/prefetch', async (c) => {
    const ticket = await guard(c.req.raw.headers, ['prefetch', 'admin'])
    const { signal, ...options } = optionsOf(c, ticket)
    // The edge's hint outlives its request, which does not wait for a load; an operator who goes away has changed his mind.
    const wanted = ticket.action === 'prefetch' || signal === undefined ? options : { ...options, signal }
    return c.json(listed(await adapters.prefetch(selectionOf(ticket), wanted)))
  })

  app.post('/adapters/pin', async (c) => {
    const ticket = await guard(c.req.raw.headers, ['admin'])
    const selection = selectionOf(ticket)
    const options = optionsOf(c, ticket)
    const listing = await adapters.pin(selection, options)
    const lease = await adapters.acquire(selection, options)
    try {
      await engine.pinAdapter(lease.packed)
      await engine.freshStats()
    } catch (error) {
      await adapters.unpin(listing.digest)
      throw error
    } finally {
      lease.release()
    }
    return c.json(listed(listing))
  })

  app.post('/adapters/unpin', async (c) => {
    const ticket = await guard(c.req.raw.headers, ['admin'])
    const listing = await adapters.unpin(await readName(c, ticket))
    await engine.unpinAdapter(listing.digest)
    return c.json(listed(listing))
  })

  app.post('/adapters/unload', async (c) => {
    const ticket = await guard(c.req.raw.headers, ['admin'])
    const listing = await adapters.unload(await readName(c, ticket))
    await engine.unloadAdapter(listing.digest)
    await engine.freshStats()
    return c.json(listed(listing))
  })
}

function selectionOf(ticket: Ticket): AdaptedSelection {
  if (ticket.adapter.kind === 'base') {
    throw new RingletError('field_invalid', 'name an adapter; the base model is always loaded', { param: 'adapter' })
  }
  return ticket.adapter
}
