/** The proxy in workerd before nodes that answer, refuse, stall, and tear their connections. */

import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { selectionKey } from '../../../shared/adapter-ref.ts'
import { HEARTBEAT_PATH } from '../../../shared/fleet.ts'
import { type SeenRequest, type StubBehaviour, type StubNode, stubText, stubTokens } from '../../support/stub-node.ts'
import { type ProxyEdge, startProxyEdge } from './proxy-edge.ts'

let edge: ProxyEdge
let nodes: StubNode[]
/** What nodes say is in flight with them; absent: the truth. */
let busy: number | undefined
/** Nodes open streams before the adapter is loaded. */
let early = false
/** What befalls the next requests for an adapter, whichever nodes they reach; after the last, nodes answer. */
const plans = new Map<string, StubBehaviour[]>()

beforeAll(async () => {
  edge = await startProxyEdge({ streamHeadersMs: 400, stallMs: 400, watchMs: 100, patienceMs: 300, patienceStepMs: 50 })
  nodes = await Promise.all(
    ['n1', 'n2', 'n3'].map((nodeId) =>
      edge.addNode({
        nodeId,
        load: () => busy,
        opensEarly: () => early,
        behave: ({ ticket }) => plans.get(selectionKey(ticket.adapter))?.shift() ?? { kind: 'answer' },
      }),
    ),
  )
  await edge.waitForNodes((seen) => seen.length === 3)
})
afterAll(() => edge.stop())

function plan(adapter: string, ...behaviours: StubBehaviour[]): void {
  plans.set(adapterOf(adapter), behaviours)
}

const times = (count: number, behaviour: StubBehaviour) => Array.from({ length: count }, () => behaviour)

/** The requests for an adapter that nodes have seen, in order, and where. */
function seenFor(adapter: string): { nodeId: string; seen: SeenRequest }[] {
  return nodes
    .flatMap((node) => node.seen.map((seen) => ({ nodeId: node.nodeId, seen })))
    .filter(({ seen }) => selectionKey(seen.ticket.adapter) === adapterOf(adapter))
    .sort((a, b) => a.seen.ticket.expiresAt - b.seen.ticket.expiresAt)
}

const adapterOf = (adapter: string) => `local:${adapter}`
const wholeText = (adapter: string, prompt = 'hello', choice = 0) =>
  stubText(stubTokens(adapterOf(adapter), prompt, choice, 12))

/** Joins the text of a stream's events, by choice. */
function textOf(events: string, choice = 0): string {
  return dataOf(events)
    .flatMap((data) => (data.choice === choice && data.text !== undefined ? [data.text] : []))
    .join('')
}

function dataOf(events: string): { choice?: number; text?: string; role?: string; error?: string; code?: string }[] {
  return [...events.matchAll(/^data: (\{.*\})$/gm)].map((match) => JSON.parse(match[1]!))
}

describe('a request that nothing disturbs', () => {
  test('is streamed as the node wrote it, byte for byte', async () => {
    const reply = await edge.ask({ adapter: 'calm' })
    expect(reply.headers.get('content-type')).toBe('text/event-stream')
    expect(reply.headers.get('x-ringlet-node')).toBe((await edge.explain('calm')).nodes[0]!.nodeId)
    const body = await reply.text()
    expect(textOf(body)).toBe(wholeText('calm'))
    expect(body).toMatch(/^data: \{"choice":0,"role":"assistant"\}\n\nid: 0:1:\d+:\w+\n/)
    expect(body.endsWith('data: {"usage":12}\n\ndata: [DONE]\n\n: end\n\n')).toBe(true)
  })

  test('carries a ticket for that node, the caller’s adapter tokens, and the edge’s ids', async () => {
    const requestId = crypto.randomUUID()
    const reply = await edge.ask({ adapter: 'ticketed', requestId, stream: false })
    expect(await reply.json()).toEqual({ generated_text: wholeText('ticketed') })
    const node = nodes.find((one) => one.nodeId === reply.headers.get('x-ringlet-node'))!
    const seen = node.seen.find((one) => one.ticket.requestId === requestId)!
    expect(seen.ticket).toMatchObject({ nodeId: node.nodeId, tenantId: 'tenant', seed: 11, cacheSalt: 'salt' })
    expect(seen.ticket.expiresAt - Date.now()).toBeLessThanOrEqual(60_000)
    expect(seen.headers['x-request-id']).toBe(requestId)
    expect(seen.headers.traceparent).toMatch(/^00-/)
    const tokens = Buffer.from(String(seen.headers['x-ringlet-adapter-tokens']), 'base64url').toString()
    expect(JSON.parse(tokens)).toEqual({ '*': 'hub-token' })
  })

  test('is metered once, with the tokens that the client got', async () => {
    const before = (await edge.ended()).length
    await (await edge.ask({ adapter: 'metered', choices: 2 })).text()
    const usage = (await edge.waitForEnded(before + 1)).slice(before)
    expect(usage).toHaveLength(1)
    expect(usage[0]).toMatchObject({ outcome: 'ok', promptTokens: 5, generatedTokens: 24, adapterCache: 'ram' })
  })
})

test('a node that says it is busy passes its next requests on to others, before the registry knows', async () => {
  busy = 500
  const first = await edge.ask({ adapter: 'busy', stream: false })
  busy = undefined
  expect(first.headers.get('x-ringlet-load')).toBeNull()
  const second = await edge.ask({ adapter: 'busy', stream: false })
  expect(second.headers.get('x-ringlet-node')).not.toBe(first.headers.get('x-ringlet-node'))
  await Promise.all([first.text(), second.text()])
})

describe('before the first byte', () => {
  const failures: [string, StubBehaviour][] = [
    ['is draining', { kind: 'refuse', code: 'node_draining' }],
    ['is full', { kind: 'refuse', code: 'queue_full' }],
    ['has no room for the adapter', { kind: 'refuse', code: 'adapter_capacity' }],
    ['has not got the newest ticket key', { kind: 'refuse', code: 'ticket_invalid' }],
    ['has a clock that is minutes off', { kind: 'refuse', code: 'ticket_expired' }],
    ['stands behind a tunnel that lost it', { kind: 'gateway_error', status: 502 }],
    ['stands behind a tunnel that does not know it', { kind: 'gateway_error', status: 404 }],
    ['stands behind a page to log in', { kind: 'gateway_error', status: 302 }],
    ['stands behind a page that is fine', { kind: 'gateway_error', status: 200 }],
    ['says nothing', { kind: 'stall' }],
  ]
  test.each(failures)('another node answers when the owner %s', async (what, behaviour) => {
    const adapter = `before-${what.replaceAll(' ', '-')}`
    plan(adapter, behaviour)
    const reply = await edge.ask({ adapter })
    expect(reply.status).toBe(200)
    expect(textOf(await reply.text())).toBe(wholeText(adapter))
    const [first, second] = seenFor(adapter)
    expect(second!.nodeId).not.toBe(first!.nodeId)
    expect(reply.headers.get('x-ringlet-node')).toBe(second!.nodeId)
  })

  test('a refusal that another node would repeat is passed on as it is', async () => {
    plan('bad-field', { kind: 'refuse', code: 'field_invalid' })
    const reply = await edge.ask({ adapter: 'bad-field' })
    expect(reply.status).toBe(422)
    expect(await reply.json()).toMatchObject({ code: 'field_invalid', error_type: 'validation' })
    expect(seenFor('bad-field')).toHaveLength(1)
  })

  test('a tunnel that ran out of patience is no reason to begin again; its page is not passed on', async () => {
    plan('slow-json', { kind: 'gateway_error', status: 524 })
    const reply = await edge.ask({ adapter: 'slow-json', stream: false })
    expect([reply.status, await reply.json()]).toMatchObject([504, { code: 'deadline_exceeded' }])
    expect(seenFor('slow-json')).toHaveLength(1)
  })

  test('a page of something in between never reaches the client, whatever its status', async () => {
    for (const status of [200, 302, 403, 404, 502]) {
      plan(`pages-${status}`, ...times(3, { kind: 'gateway_error', status }))
      const reply = await edge.ask({ adapter: `pages-${status}`, stream: false })
      expect([reply.status, await reply.json()]).toMatchObject([503, { code: 'node_unreachable' }])
    }
  })

  test('a ticket that no node takes is not the client’s fault: 503, and no 401', async () => {
    for (const code of ['ticket_invalid', 'ticket_expired', 'ticket_wrong_node'] as const) {
      plan(`ticket-${code}`, ...times(3, { kind: 'refuse', code }))
      const reply = await edge.ask({ adapter: `ticket-${code}` })
      expect([reply.status, await reply.json()]).toMatchObject([503, { code: 'node_unreachable' }])
    }
  })

  test('a proxy that takes no body of this size says the same before every node', async () => {
    plan('large', { kind: 'gateway_error', status: 413 })
    const reply = await edge.ask({ adapter: 'large' })
    expect([reply.status, await reply.json()]).toMatchObject([413, { code: 'body_too_large' }])
    expect(seenFor('large')).toHaveLength(1)
  })

  test('when every node is full the client hears that, and when to come again', async () => {
    plan('full', ...times(3, { kind: 'refuse', code: 'queue_full', retryAfter: 3 }))
    const reply = await edge.ask({ adapter: 'full' })
    expect(reply.status).toBe(429)
    expect(reply.headers.get('retry-after')).toBe('3')
    expect(await reply.json()).toMatchObject({ code: 'queue_full' })
  })

  test('a JSON reply whose connection tears is asked for again, whole', async () => {
    plan('torn-reply', { kind: 'tear', afterEvents: 0 })
    const reply = await edge.ask({ adapter: 'torn-reply', stream: false })
    expect(await reply.json()).toEqual({ generated_text: wholeText('torn-reply') })
    expect(new Set(seenFor('torn-reply').map(({ nodeId }) => nodeId)).size).toBe(2)
  })

  test('a request that tears every node’s connection is given up after four, not tried on the whole fleet', async () => {
    plan('poison', ...times(9, { kind: 'tear', afterEvents: 0 }))
    const reply = await edge.ask({ adapter: 'poison', stream: false })
    expect(reply.status).toBe(503)
    expect(await reply.json()).toMatchObject({ code: 'node_unreachable' })
  })
})

describe('a node lost in the middle of a stream', () => {
  const losses: [string, StubBehaviour][] = [
    ['tears the connection', { kind: 'tear', afterEvents: 5 }],
    ['tears it within an event', { kind: 'tear', afterEvents: 5, midEvent: true }],
    ['closes without the end line', { kind: 'close', afterEvents: 5 }],
    ['falls silent', { kind: 'silence', afterEvents: 5 }],
    ['is lost after the role event alone', { kind: 'tear', afterEvents: 1 }],
    ['is lost before any event', { kind: 'tear', afterEvents: 0 }],
    ['is lost between the last token and the end', { kind: 'close', afterEvents: 14 }],
  ]
  test.each(losses)('%s: the client gets the undisturbed stream', async (what, loss) => {
    const adapter = `lost-${what.replaceAll(' ', '-')}`
    const undisturbed = await (await edge.ask({ adapter })).text()
    plan(adapter, loss)
    const events = (await (await edge.ask({ adapter })).text()).replaceAll(/^:\n\n/gm, '')
    const anyNode = (text: string) => text.replaceAll(/^(id: .*):\w+$/gm, '$1')
    expect(anyNode(events)).toBe(anyNode(undisturbed))
    const [, lost, next] = seenFor(adapter)
    expect(next!.nodeId).not.toBe(lost!.nodeId)
  })

  test('a connection torn behind the end line has brought everything: nobody is asked again', async () => {
    const adapter = 'lost-behind-the-end'
    const undisturbed = await (await edge.ask({ adapter })).text()
    for (let n = 0; n < 8; n++) {
      plan(adapter, { kind: 'tear', afterEvents: 16 })
      expect(await (await edge.ask({ adapter })).text()).toBe(undisturbed)
    }
    expect(seenFor(adapter)).toHaveLength(9)
    expect((await edge.ended()).slice(-8).every(({ outcome }) => outcome === 'ok')).toBe(true)
  })

  test('the next node is told what was delivered, under the same seed, salt and time', async () => {
    plan('resumed', { kind: 'tear', afterEvents: 6, midEvent: true })
    await (await edge.ask({ adapter: 'resumed', choices: 2 })).text()
    const [first, next] = seenFor('resumed').map(({ seen }) => seen)
    // Two roles and four tokens were whole: two of each choice.
    const [zero, one] = [0, 1].map((choice) => stubTokens('local:resumed', 'hello', choice, 12))
    expect(next!.delivered).toEqual({ 0: zero!.slice(0, 2), 1: one!.slice(0, 2) })
    expect(next!.body).toBe(first!.body)
    for (const same of ['seed', 'cacheSalt', 'createdAt', 'adapter', 'requestId'] as const) {
      expect(next!.ticket[same]).toEqual(first!.ticket[same])
    }
    expect(next!.ticket.ticketId).not.toBe(first!.ticket.ticketId)
  })

  test('streams that opened before their adapter was loaded go on as well', async () => {
    early = true
    plan('early', { kind: 'tear', afterEvents: 5 })
    const events = await (await edge.ask({ adapter: 'early' })).text()
    early = false
    expect(textOf(events)).toBe(wholeText('early'))
    expect(events).toContain(': end')
  })

  test('two nodes lost one after the other: still no token too few or too many', async () => {
    plan('twice', { kind: 'tear', afterEvents: 4 }, { kind: 'tear', afterEvents: 3 })
    const events = await (await edge.ask({ adapter: 'twice', choices: 3 })).text()
    for (const choice of [0, 1, 2]) {
      expect(textOf(events, choice)).toBe(wholeText('twice', 'hello', choice))
    }
    expect(events).toContain(': end')
    expect(new Set(seenFor('twice').map(({ nodeId }) => nodeId)).size).toBe(3)
  })

  test('when no node can go on, the stream ends with an error event in the route’s shape', async () => {
    plan('nobody', ...times(30, { kind: 'tear', afterEvents: 0 }))
    const lorax = dataOf(await (await edge.ask({ adapter: 'nobody' })).text())
    expect(lorax.at(-1)).toMatchObject({ error_type: 'incomplete_generation', code: 'stream_broken' })
    const openai = dataOf(await (await edge.ask({ adapter: 'nobody', errorStyle: 'openai' })).text())
    expect(openai.at(-1)).toMatchObject({ error: { code: 'stream_broken', type: 'server_error' } })
  })

  test('a node that would run another version of the adapter does not continue the answer', async () => {
    plan('changed', { kind: 'tear', afterEvents: 5 })
    const reply = await edge.ask({ adapter: 'changed' })
    for (const node of nodes) {
      node.digest = 'new-digest'
    }
    const events = await reply.text()
    for (const node of nodes) {
      node.digest = 'stub-digest'
    }
    expect(wholeText('changed').startsWith(textOf(events))).toBe(true)
    expect(dataOf(events).at(-1)).toMatchObject({ code: 'stream_broken' })
  })
})

describe('a client that comes back', () => {
  /** The stream up to some event, as a client has it whose connection broke; and the event's id. */
  async function begin(adapter: string, requestId: string, events: number, choices = 1) {
    const text = await (await edge.ask({ adapter, requestId, choices })).text()
    const ids = [...text.matchAll(/^id: (.*)$/gm)].map((match) => match[1]!)
    const lastEventId = ids[events - 1]!
    return { seen: text.slice(0, text.indexOf('\n\n', text.indexOf(lastEventId)) + 2), lastEventId, text }
  }

  test('goes on after the last event that it saw, also in the middle of several choices', async () => {
    const requestId = crypto.randomUUID()
    const { seen, lastEventId, text } = await begin('back', requestId, 7, 3)
    const before = (await edge.ended()).length
    const rest = await (await edge.ask({ adapter: 'back', requestId, choices: 3, lastEventId })).text()
    expect(seen + rest).toBe(text)
    const usage = (await edge.waitForEnded(before + 1))[before]!
    expect(usage).toMatchObject({ outcome: 'ok', generatedTokens: 3 * 12 - 7 })
  })

  test('goes on with another node when the one that remembers takes no more requests', async () => {
    const requestId = crypto.randomUUID()
    const { seen, lastEventId } = await begin('back-draining', requestId, 4)
    plan('back-draining', { kind: 'refuse', code: 'node_draining' })
    const reply = await edge.ask({ adapter: 'back-draining', requestId, lastEventId })
    expect(textOf(seen) + textOf(await reply.text())).toBe(wholeText('back-draining'))
  })

  test('has its resumed stream continued too, when that node is lost', async () => {
    const requestId = crypto.randomUUID()
    const { seen, lastEventId } = await begin('back-lost', requestId, 4)
    plan('back-lost', { kind: 'tear', afterEvents: 3 })
    const rest = await (await edge.ask({ adapter: 'back-lost', requestId, lastEventId })).text()
    expect(textOf(seen) + textOf(rest)).toBe(wholeText('back-lost'))
    expect(seenFor('back-lost').at(-1)!.seen.delivered![0]).toHaveLength(7)
  })

  test('is refused with a code when nobody knows its stream, or its adapter is another by now', async () => {
    const requestId = crypto.randomUUID()
    const { lastEventId } = await begin('back-changed', requestId, 4)
    const strange = [
      { requestId: crypto.randomUUID(), lastEventId },
      { requestId, lastEventId: '0:4:1' },
      { requestId, lastEventId: 'nonsense' },
    ]
    for (const asked of strange) {
      const reply = await edge.ask({ adapter: 'back-changed', ...asked })
      expect([reply.status, await reply.json()]).toMatchObject([404, { code: 'resume_unknown' }])
    }
    const holder = nodes.find((node) => node.nodeId === seenFor('back-changed')[0]!.nodeId)!
    const others = nodes.filter((node) => node !== holder)
    for (const node of others) {
      node.digest = 'new-digest'
    }
    plan('back-changed', { kind: 'refuse', code: 'node_draining' })
    const reply = await edge.ask({ adapter: 'back-changed', requestId, lastEventId })
    for (const node of others) {
      node.digest = 'stub-digest'
    }
    expect([reply.status, await reply.json()]).toMatchObject([404, { code: 'resume_unknown' }])
  })
})

describe('leaving', () => {
  test('a client that goes frees the node at once, and the request is metered', async () => {
    const adapter = 'client-leaves'
    plan(adapter, { kind: 'slow', gapMs: 60 })
    const count = (await edge.ended()).length
    const client = new AbortController()
    const reader = (await edge.ask({ adapter, signal: client.signal })).body!.getReader()
    await reader.read()
    const node = nodes.find((one) => one.nodeId === seenFor(adapter)[0]!.nodeId)!
    const cancelled = node.nextCancelled()
    client.abort()
    await reader.closed.catch(() => undefined)
    await cancelled
    expect(node.inFlight()).toBe(0)
    const usage = (await edge.waitForEnded(count + 1)).at(-1)!
    expect(usage.outcome).toBe('client_gone')
    expect(usage.generatedTokens).toBeLessThan(12)
  })

  test('a client that goes before the first byte does so too', async () => {
    const adapter = 'client-leaves-early'
    plan(adapter, { kind: 'stall' }, { kind: 'stall' }, { kind: 'stall' })
    const count = (await edge.ended()).length
    const client = new AbortController()
    const asked = edge.ask({ adapter, signal: client.signal }).catch(() => undefined)
    while (seenFor(adapter).length === 0) {
      await new Promise((resolve) => setImmediate(resolve))
    }
    client.abort()
    await asked
    const usage = (await edge.waitForEnded(count + 1)).at(-1)!
    expect(usage.outcome).not.toBe('ok')
    expect(nodes.map((node) => node.inFlight())).toEqual([0, 0, 0])
  })

  test('a request that may not go on ends with that error as an event', async () => {
    const adapter = 'revoked'
    plan(adapter, { kind: 'silence', afterEvents: 3 })
    const events = await (await edge.ask({ adapter, endAfterMs: 150 })).text()
    expect(dataOf(events).at(-1)).toMatchObject({ code: 'token_revoked', error_type: 'authentication' })
    expect((await edge.ended()).at(-1)!.outcome).toBe('token_revoked')
  })
})

test('a heartbeat without a join key’s signature is refused', async () => {
  const reply = await fetch(edge.url + HEARTBEAT_PATH, { method: 'POST', body: '{"nodeId":"intruder"}' })
  expect(reply.status).toBe(401)
  expect((await edge.nodes()).map((node) => node.nodeId)).not.toContain('intruder')
})
