/** Nodes and the registry in workerd: joining, leaving, draining with hand-over, and what a stream in progress sees of it. */

import { once } from 'node:events'
import { type IncomingMessage, request } from 'node:http'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { HEARTBEAT_PATH, HEARTBEAT_SIGNATURE_HEADER } from '../../../shared/fleet.ts'
import { signHeartbeat } from '../../../shared/heartbeat-signature.ts'
import { type StubNode, stubText, stubTokens } from '../../support/stub-node.ts'
import { joinKeys, type ProxyEdge, startProxyEdge } from '../proxy/proxy-edge.ts'

let edge: ProxyEdge
let nodes: StubNode[]

beforeAll(async () => {
  edge = await startProxyEdge({ watchMs: 100 })
  nodes = await Promise.all(['n1', 'n2', 'n3'].map(join))
  await edge.waitForNodes((seen) => seen.length === 3)
})
afterAll(() => edge.stop())

/** The node whose streams stop after a few events, until it is killed. */
let held: string | undefined
const join = (nodeId: string) =>
  edge.addNode({
    nodeId,
    gapMs: 5,
    tokens: 30,
    behave: () => (nodeId === held ? { kind: 'silence', afterEvents: 7 } : { kind: 'answer' }),
  })

const byId = (nodeId: string | undefined) => nodes.find((node) => node.nodeId === nodeId)!
const wholeText = (adapter: string, prompt: string) => stubText(stubTokens(`local:${adapter}`, prompt, 0, 30))
const textOf = (events: string) => [...events.matchAll(/"text":"([^"]*)"/g)].map((match) => match[1]).join('')

test('a draining node answers for its adapters until the next owner has loaded them', async () => {
  const [owner, next] = (await edge.explain('handed')).nodes.map((node) => byId(node.nodeId))
  owner!.resident.push({ ref: 'local:handed', digest: 'x', tier: 'engine' })
  owner!.heartbeats!.beat()
  await edge.waitForNodes((seen) => seen.find((node) => node.nodeId === owner!.nodeId)!.resident === 1)

  await owner!.heartbeats!.announceDrain()
  await edge.waitForNodes((seen) => seen.find((node) => node.nodeId === owner!.nodeId)!.draining)
  const during = await edge.ask({ adapter: 'handed' })
  await during.text()
  expect(during.headers.get('x-ringlet-node')).toBe(owner!.nodeId)

  await edge.waitForNodes((seen) => seen.find((node) => node.nodeId === next!.nodeId)!.resident === 1)
  expect(next!.prefetched).toEqual(['local:handed'])
  const after = await edge.ask({ adapter: 'handed' })
  await after.text()
  expect(after.headers.get('x-ringlet-node')).toBe(next!.nodeId)
  // Other adapters of the draining node are not its business any more.
  const others = await Promise.all(Array.from({ length: 12 }, (_, n) => edge.ask({ adapter: `other-${n}` })))
  expect(others.map((reply) => reply.headers.get('x-ringlet-node'))).not.toContain(owner!.nodeId)
  await Promise.all(others.map((reply) => reply.text()))

  await owner!.heartbeats!.leave()
  await edge.waitForNodes((seen) => seen.every((node) => node.nodeId !== owner!.nodeId))
  nodes = [...nodes.filter((node) => node !== owner), await join('n4')]
})

test('an operator’s drain takes a node out of placement and back', async () => {
  const [{ nodeId }] = nodes as [StubNode]
  expect(await edge.drain(nodeId, true)).toBe(true)
  await edge.waitForNodes((seen) => seen.find((node) => node.nodeId === nodeId)!.draining)
  expect((await edge.explain('any')).nodes.at(-1)).toMatchObject({ nodeId, draining: true })
  expect(await edge.drain(nodeId, false)).toBe(true)
  await edge.waitForNodes((seen) => !seen.find((node) => node.nodeId === nodeId)!.draining)
  expect(await edge.drain('nobody', true)).toBe(false)
})

test('one of three nodes killed under 50 streams: every stream ends with the text it would have had', async () => {
  const ask = (n: number) => edge.ask({ adapter: `kill-${n % 7}`, prompt: `prompt ${n}` })
  const victim = byId((await edge.explain('kill-0')).nodes[0]!.nodeId)
  held = victim.nodeId
  const replies = await Promise.all(Array.from({ length: 50 }, (_, n) => ask(n)))
  expect(victim.inFlight()).toBeGreaterThan(5)
  await victim.kill()
  const texts = await Promise.all(replies.map(async (reply) => textOf(await reply.text())))
  expect(texts).toEqual(Array.from({ length: 50 }, (_, n) => wholeText(`kill-${n % 7}`, `prompt ${n}`)))
  // And those that come after it find another node.
  const later = await Promise.all(Array.from({ length: 20 }, (_, n) => ask(n)))
  expect(later.every((reply) => reply.status === 200)).toBe(true)
  await Promise.all(later.map((reply) => reply.text()))
})

test('a node that knows the join secret alone gets the ticket keys from the edge, and serves', async () => {
  const before = nodes
  nodes = [await edge.addNode({ nodeId: 'newcomer', joinSecretOnly: true })]
  await edge.waitForNodes((seen) => seen.some((node) => node.nodeId === 'newcomer' && !node.draining))
  await Promise.all(before.map((node) => edge.drain(node.nodeId, true)))
  await edge.waitForNodes((seen) => seen.every((node) => node.draining === (node.nodeId !== 'newcomer')))
  const reply = await edge.ask({ adapter: 'welcome', stream: false })
  expect([reply.status, reply.headers.get('x-ringlet-node')]).toEqual([200, 'newcomer'])
})

test('a heartbeat must be signed, fresh, and sensible', async () => {
  const post = async (body: string, signature: string) => {
    const headers = { [HEARTBEAT_SIGNATURE_HEADER]: signature }
    const reply = await fetch(edge.url + HEARTBEAT_PATH, { method: 'POST', body, headers })
    return [reply.status, ((await reply.json()) as { code: string }).code]
  }
  const body = JSON.stringify({ nodeId: 'intruder' })
  const now = Date.now()
  expect(await post(body, await signHeartbeat(body, { keys: [{ id: 'j1', secret: 'wrong' }] }, now))).toEqual([
    401,
    'ticket_invalid',
  ])
  expect(await post(body, await signHeartbeat(`${body} `, joinKeys, now))).toEqual([401, 'ticket_invalid'])
  expect(await post(body, await signHeartbeat(body, joinKeys, now - 60_000))).toEqual([401, 'ticket_expired'])
  expect(await post(body, await signHeartbeat(body, joinKeys, now))).toEqual([422, 'field_invalid'])
})

test.each([
  ['no signature', {}],
  ['an unknown key', { [HEARTBEAT_SIGNATURE_HEADER]: `other.${Date.now()}.AAAA` }],
  ['another day', { [HEARTBEAT_SIGNATURE_HEADER]: 'j1.1700000000000.AAAA' }],
])('a heartbeat with %s is refused before its body is read', async (_what, headers) => {
  const unfinished = request(edge.url + HEARTBEAT_PATH, { method: 'POST', headers })
  unfinished.write('{"nodeId":')
  const [reply] = (await once(unfinished, 'response')) as [IncomingMessage]
  expect(reply.statusCode).toBe(401)
  unfinished.on('error', () => undefined).destroy()
})
