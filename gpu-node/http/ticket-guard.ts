/** Lets a request through only with a valid, unused ticket for this node and this action. */

import { RingletError } from '../../shared/errors.ts'
import { MAX_TICKET_LIFE_MS, TICKET_HEADER, type Ticket, type TicketAction, verifyTicket } from '../../shared/ticket.ts'
import type { NodeContext } from './node-context.ts'

export type TicketGuard = (headers: Headers, actions: readonly TicketAction[]) => Promise<Ticket>

export function createTicketGuard(context: Pick<NodeContext, 'ticketKeys' | 'identity' | 'clock'>): TicketGuard {
  const used = createUsedTickets()
  return async (headers, actions) => {
    const text = headers.get(TICKET_HEADER)
    if (text === null) {
      throw new RingletError('ticket_missing', 'this node serves nothing without a ticket from the edge')
    }
    const now = context.clock.wall()
    const ticket = await verifyTicket(text, context.ticketKeys, context.identity.nodeId, now)
    if (ticket.baseDigest !== undefined && ticket.baseDigest !== context.identity.baseDigest) {
      throw new RingletError('ticket_wrong_node', 'this node serves another base than the ticket is for')
    }
    if (!actions.includes(ticket.action)) {
      throw new RingletError('ticket_invalid', `the ticket is for ${ticket.action}, not for this route`)
    }
    if (!used.take(ticket.ticketId, now)) {
      throw new RingletError('ticket_replayed', 'the ticket was used before')
    }
    return ticket
  }
}

export interface UsedTickets {
  /** False when the id was taken before. */
  take(ticketId: string, now: number): boolean
  readonly size: number
}

/**
 * Ids are forgotten once their tickets have expired, in two generations. No ticket that passes `verifyTicket` lives longer
 * than two generations' turn.
 */
export function createUsedTickets(): UsedTickets {
  const span = 2 * MAX_TICKET_LIFE_MS
  let current = new Set<string>()
  /** Taken in the `span` before `turnedAt`. */
  let previous = new Set<string>()
  let turnedAt = 0
  return {
    take: (ticketId, now) => {
      if (now - turnedAt > span) {
        previous = now - turnedAt > 2 * span ? new Set() : current
        current = new Set()
        turnedAt = now
      }
      if (current.has(ticketId) || previous.has(ticketId)) {
        return false
      }
      current.add(ticketId)
      return true
    },
    get size() {
      return current.size + previous.size
    },
  }
}
