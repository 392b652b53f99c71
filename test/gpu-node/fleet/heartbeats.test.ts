/** A node's heartbeats against a loopback edge: what is sent, when, and how the node goes. */

import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, expect, test } from 'vitest'
import { drainNode } from '../../../gpu-node/fleet/drain.ts'
import { type Heartbeats, type NodeDescription, startHeartbeats } from '../../../gpu-node/fleet/heartbeats.ts'
import { createReceivedKeys } from '../../../gpu-node/fleet/received-keys.ts'
import { HEARTBEAT_SIGNATURE_HEADER, type Heartbeat, heartbeatSchema } from '../../../shared/fleet.ts'
import { verifyHeartbeat } from '../../../shared/heartbeat-signature.ts'
import type { SigningKeys } from '../../../shared/hmac.ts'
import { keysVersion, sealKeys } from '../../../shared/sealed-keys.ts'

const JOIN_SECRET = 'join-secret'
const joinKeys = { keys: [{ id: 'j1', secret: JOIN_SECRET }] }

interface LoopbackEdge {
  url: string
  heard: (Heartbeat & { sentAt: number })[]
  /** Resolves when the edge has heard so many. */
  waitFor: (count: number) => Promise<void>
  answer: { status: number; wantResident: boolean; keys: SigningKeys }
  /** How often it gave out its ticket keys. */
  sealed: number
}

const servers: Server[] = []
const senders: Heartbeats[] = []
afterEach(async () => {
  await Promise.all(senders.splice(0).map((sender) => sender.leave()))
  for (const server of servers.splice(0)) {
    server.close()
  }
})

async function startEdge(): Promise<LoopbackEdge> {
  const waiting: { count: number; resolve: () => void }[] = []
  const edge: LoopbackEdge = {
    url: '',
    heard: [],
    answer: { status: 200, wantResident: false, keys: { keys: [] } },
    sealed: 0,
    waitFor: (count) =>
      edge.heard.length >= count ? Promise.resolve() : new Promise((resolve) => waiting.push({ count, resolve })),
  }
  const server = createServer(async (request, response) => {
    let body = ''
    for await (const chunk of request.setEncoding('utf8')) {
      body += chunk
    }
    const signature = String(request.headers[HEARTBEAT_SIGNATURE_HEADER])
    const { sentAt } = await verifyHeartbeat(signature, body, joinKeys, Date.now())
    const { status, wantResident, keys } = edge.answer
    const heartbeat = heartbeatSchema.parse(JSON.parse(body))
    const known = heartbeat.ticketKeysVersion
    const isNews = known !== undefined && known !== (await keysVersion(keys, JOIN_SECRET))
    edge.sealed += isNews ? 1 : 0
    const ticketKeys = isNews ? { ticketKeys: await sealKeys(keys, JOIN_SECRET) } : {}
    response.writeHead(status).end(JSON.stringify({ accepted: true, wantResident, draining: false, ...ticketKeys }))
    edge.heard.push({ ...heartbeat, sentAt })
    for (const waiter of waiting.filter(({ count }) => edge.heard.length >= count)) {
      waiter.resolve()
    }
  })
  servers.push(server)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  edge.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  return edge
}

const description: NodeDescription = {
  nodeId: 'node',
  bootId: 'boot',
  url: 'http://127.0.0.1:1',
  baseModel: 'base',
  baseDigest: 'd',
  dtype: 'int8',
  maxSequences: 8,
  maxPositions: 512,
  inFlight: 0,
  queued: 0,
  resident: [],
}

function start(edge: LoopbackEdge, changes: Partial<Parameters<typeof startHeartbeats>[0]> = {}): Heartbeats {
  const sender = startHeartbeats({
    edgeUrl: edge.url,
    joinKeys,
    describe: () => description,
    fetch,
    now: Date.now,
    log: () => undefined,
    intervalMs: 20,
    ...changes,
  })
  senders.push(sender)
  return sender
}

test('the first heartbeat joins; the list of residents follows only when it changes', async () => {
  const edge = await startEdge()
  let resident: NodeDescription['resident'] = [{ ref: 'local:a', digest: 'a', tier: 'ram' }]
  const sender = start(edge, { describe: () => ({ ...description, resident }) })
  await sender.joined
  await edge.waitFor(3)
  expect(edge.heard[0]!.resident).toEqual(resident)
  expect(edge.heard[1]!.resident).toBeUndefined()
  resident = [...resident, { ref: 'local:b', digest: 'b', tier: 'engine' }]
  const before = edge.heard.length
  await edge.waitFor(before + 3)
  const lists = edge.heard.slice(before).filter((heartbeat) => heartbeat.resident !== undefined)
  expect(lists.map((heartbeat) => heartbeat.resident?.length)).toEqual([2])
  expect(lists[0]!.residentVersion).toBeGreaterThan(edge.heard[0]!.residentVersion)
})

test('an edge that forgot the list asks for it and gets it at once', async () => {
  const edge = await startEdge()
  const resident: NodeDescription['resident'] = [{ ref: 'local:a', digest: 'a', tier: 'ram' }]
  const sender = start(edge, { describe: () => ({ ...description, resident }), intervalMs: 60_000 })
  await sender.joined
  edge.answer.wantResident = true
  sender.beat()
  await edge.waitFor(3)
  expect(edge.heard.map((heartbeat) => heartbeat.resident?.length)).toEqual([1, undefined, 1])
})

test('ticket keys come sealed, until then the node drains; a rotation reaches it with the next heartbeat', async () => {
  const edge = await startEdge()
  const first = { keys: [{ id: 't1', secret: 'first-secret' }] }
  const rotated = { keys: [{ id: 't2', secret: 'second-secret' }, ...first.keys] }
  edge.answer.keys = first
  const received = createReceivedKeys()
  const sender = start(edge, { ticketKeys: received, intervalMs: 300 })
  await sender.joined
  expect(edge.heard.map((heartbeat) => heartbeat.draining)).toEqual([true, false])
  expect(received.keys).toEqual(first.keys)
  expect(edge.sealed).toBe(1)
  edge.answer.keys = rotated
  const before = edge.heard.length
  await edge.waitFor(before + 2)
  expect(received.keys).toEqual(rotated.keys)
  expect(edge.sealed).toBe(2)
})

test('keys sealed with another join secret are not taken', async () => {
  const sealed = await sealKeys({ keys: [{ id: 'evil', secret: 'x' }] }, 'another-secret')
  const received = createReceivedKeys()
  await expect(received.receive(sealed, joinKeys)).rejects.toMatchObject({ code: 'ticket_invalid' })
  await expect(received.receive('nonsense', joinKeys)).rejects.toMatchObject({ code: 'ticket_invalid' })
  expect(received.keys).toEqual([])
})

test('an edge that is away is tried again; one line says so, one that it is back', async () => {
  const edge = await startEdge()
  edge.answer.status = 500
  const lines: string[] = []
  const sender = start(edge, { log: (event) => lines.push(event) })
  await edge.waitFor(4)
  edge.answer.status = 200
  await sender.joined
  expect(lines).toEqual(['fleet_unreachable', 'fleet_joined'])
})

test('no two heartbeats carry the same time, and none goes back', async () => {
  const edge = await startEdge()
  const sender = start(edge, { now: () => 42 + Date.now() - (Date.now() % 10_000) })
  await edge.waitFor(3)
  await sender.announceDrain()
  const times = edge.heard.map((heartbeat) => heartbeat.sentAt)
  expect(times).toEqual([...new Set(times)].sort((a, b) => a - b))
})

test('a drain is told first, then what runs is finished, then the node leaves', async () => {
  const edge = await startEdge()
  const heartbeats = start(edge)
  await heartbeats.joined
  const steps: string[] = []
  let inFlight = 1
  let finish: () => void
  const idle = new Promise<void>((resolve) => {
    finish = resolve
  })
  const draining = drainNode({
    heartbeats,
    inFlight: () => inFlight,
    stopAccepting: () => {
      steps.push(`stop, draining told: ${edge.heard.at(-1)!.draining}`)
      inFlight = 0
      finish()
    },
    whenIdle: () => idle,
    handoverMs: 50,
  })
  expect(await draining).toEqual({ finished: true })
  expect(steps).toEqual(['stop, draining told: true'])
  const last = edge.heard.length
  expect(edge.heard.at(-1)).toMatchObject({ leaving: true, draining: true })
  // The last word stays the last.
  heartbeats.beat()
  expect(edge.heard.length).toBe(last)
})

test('a drain whose requests do not end is cut at its deadline, or by an operator in a hurry', async () => {
  const heartbeats = { announceDrain: async () => undefined, leave: async () => undefined }
  const stuck = {
    heartbeats,
    inFlight: () => 1,
    stopAccepting: () => undefined,
    whenIdle: () => new Promise<void>(() => undefined),
  }
  expect(await drainNode({ ...stuck, handoverMs: 1, deadlineMs: 10 })).toEqual({ finished: false })
  const hurry = new AbortController()
  const hurried = drainNode({ ...stuck, hurry: hurry.signal })
  hurry.abort()
  expect(await hurried).toEqual({ finished: false })
})
