import { expect, test } from 'vitest'
import { createTicketGuard } from '../../../gpu-node/http/ticket-guard.ts'
import type { Ticket } from '../../../shared/ticket.ts'
import { TEST_KEYS, TEST_NODE, ticketHeaders } from '../../support/mint-ticket.ts'

const clock = { wall: Date.now, steady: () => performance.now() }
const identity = {
  nodeId: TEST_NODE,
  baseModel: 'base',
  baseDigest: 'sha-of-base',
  dtype: 'f32',
  device: 'cpu',
  version: '0',
} as const
const guard = createTicketGuard({ ticketKeys: TEST_KEYS, identity, clock })
const present = async (fields: Partial<Ticket>) => guard(new Headers(await ticketHeaders(fields)), ['generate'])

test('a ticket for the base that this node serves is taken', async () => {
  expect(await present({ baseDigest: 'sha-of-base' })).toMatchObject({ tenantId: 'tenant' })
})

test('one for the base that it served before its restart is not: another node may have it', async () => {
  await expect(present({ baseDigest: 'sha-of-the-former-base' })).rejects.toMatchObject({
    code: 'ticket_wrong_node',
    kind: { retryElsewhere: true },
  })
})
