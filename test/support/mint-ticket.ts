/** Tickets as the edge signs them, for driving a node directly. */

import { mintTicket, TICKET_HEADER, type Ticket, type TicketKeys } from '../../shared/ticket.ts'

export const TEST_KEYS: TicketKeys = { keys: [{ id: 'test', secret: 'test-ticket-secret-of-32-characters' }] }
export const TEST_NODE = 'node-test'

let minted = 0

export function testTicket(fields: Partial<Ticket> = {}): Ticket {
  minted++
  return {
    action: 'generate',
    ticketId: `ticket-${process.pid}-${minted}`,
    requestId: `request-${minted}`,
    tenantId: 'tenant',
    nodeId: TEST_NODE,
    adapter: { kind: 'base' },
    cacheSalt: '00',
    seed: 7,
    limits: {},
    createdAt: 1_800_000_000,
    expiresAt: Date.now() + 30_000,
    ...fields,
  }
}

/** Headers of a request to a node. */
export async function ticketHeaders(fields: Partial<Ticket> = {}, keys = TEST_KEYS): Promise<Record<string, string>> {
  return { 'content-type': 'application/json', [TICKET_HEADER]: await mintTicket(testTicket(fields), keys) }
}
