/** Who is in the ring: heartbeats, silence, farewells, drains, and nodes that come and go too often. */

import { describe, expect, test } from 'vitest'
import {
  afterHeartbeat,
  isAlive,
  isDraining,
  isForgotten,
  type NodeRecord,
  presentRecords,
  SILENCE_MS,
} from '../../../edge/fleet/membership.ts'
import { type Heartbeat, heartbeatSchema } from '../../../shared/fleet.ts'

const START = 1_000_000

function heartbeat(changes: Partial<Heartbeat> = {}): Heartbeat {
  return heartbeatSchema.parse({
    nodeId: 'a',
    url: 'http://a.test',
    baseModel: 'base',
    baseDigest: 'd',
    dtype: 'f32',
    maxSequences: 8,
    maxPositions: 512,
    inFlight: 0,
    queued: 0,
    draining: false,
    bootId: 'boot-1',
    ...changes,
  })
}

/** Hears a node at the given times (ms after the start). */
function heard(times: number[], changes: (n: number) => Partial<Heartbeat> = () => ({})): NodeRecord {
  let record: NodeRecord | undefined
  for (const [n, time] of times.entries()) {
    record = afterHeartbeat(record, heartbeat(changes(n)), START + time, START + time) ?? record
  }
  return record!
}

test('a node silent for three intervals is out, and back with its next heartbeat', () => {
  const record = heard([0, 2_000])
  expect(isAlive(record, START + 2_000 + SILENCE_MS - 1)).toBe(true)
  expect(isAlive(record, START + 2_000 + SILENCE_MS)).toBe(false)
  const back = afterHeartbeat(record, heartbeat(), START + 20_000, START + 20_000)!
  expect(isAlive(back, START + 20_000)).toBe(true)
})

test('its last word takes it out at once', () => {
  const record = heard([0, 2_000], (n) => ({ leaving: n === 1 }))
  expect(isAlive(record, START + 2_000)).toBe(false)
})

test('a heartbeat that was overtaken, or is replayed, changes nothing', () => {
  const gone = heard([0, 2_000], (n) => ({ leaving: n === 1 }))
  expect(afterHeartbeat(gone, heartbeat(), START, START + 3_000)).toBeUndefined()
  expect(afterHeartbeat(gone, heartbeat(), START + 2_000, START + 3_000)).toBeUndefined()
})

describe('flapping', () => {
  const everyTenSeconds = (count: number) => Array.from({ length: count }, (_, n) => n * 10_000)

  test('three returns from silence in half a minute damp a node; calm readmits it', () => {
    expect(heard(everyTenSeconds(3)).damped).toBe(false)
    const flapping = heard(everyTenSeconds(6))
    expect(flapping.damped).toBe(true)
    let record = flapping
    const readmittedAt = Array.from({ length: 60 }, (_, n) => 50_000 + (n + 1) * 2_000).find((time) => {
      record = afterHeartbeat(record, heartbeat(), START + time, START + time)!
      return !record.damped
    })!
    // The penalty halves in 30 s: from just above 2.5 to 1 in about 40 to 60.
    expect(readmittedAt - 50_000).toBeGreaterThan(30_000)
    expect(readmittedAt - 50_000).toBeLessThanOrEqual(70_000)
  })

  test('a process that keeps crashing is damped, one that restarts cleanly is not', () => {
    const times = Array.from({ length: 8 }, (_, n) => n * 2_000)
    expect(heard(times, (n) => ({ bootId: `boot-${n}` })).damped).toBe(true)
    const clean = (n: number) => ({ bootId: `boot-${Math.floor(n / 2)}`, leaving: n % 2 === 1 })
    expect(heard(times, clean).damped).toBe(false)
  })

  test('one kill and restart costs nothing', () => {
    expect(heard([0, 2_000, 4_000], (n) => ({ bootId: n < 2 ? 'old' : 'new' })).damped).toBe(false)
  })
})

test('an operator’s drain lasts until the node restarts; the node’s own is its own', () => {
  const asked: NodeRecord = { ...heard([0]), drainAsked: true }
  const next = afterHeartbeat(asked, heartbeat(), START + 2_000, START + 2_000)!
  expect(isDraining(next)).toBe(true)
  const restarted = afterHeartbeat(next, heartbeat({ bootId: 'boot-2' }), START + 4_000, START + 4_000)!
  expect(isDraining(restarted)).toBe(false)
  expect(isDraining(heard([0], () => ({ draining: true })))).toBe(true)
})

test('a node that is gone is remembered for its flaps, and then forgotten', () => {
  const record = heard([0])
  expect(isForgotten(record, START + 5 * 60_000)).toBe(false)
  expect(isForgotten(record, START + 11 * 60_000)).toBe(true)
})

describe('when nobody is heard', () => {
  const seen = (nodeId: string, lastSeenAt: number, left = false): NodeRecord => ({
    ...afterHeartbeat(undefined, heartbeat({ nodeId, leaving: left }), lastSeenAt, lastSeenAt)!,
  })
  const names = (records: NodeRecord[], now: number) => {
    const { records: present, allSilent } = presentRecords(records, now)
    return [present.map(({ report }) => report.nodeId), allSilent]
  }

  test('those stay that were alive when the last one spoke', () => {
    const records = [seen('dead', START - 2 * SILENCE_MS), seen('a', START - 1_000), seen('b', START)]
    expect(names(records, START + SILENCE_MS - 500)).toEqual([['b'], false])
    expect(names(records, START + SILENCE_MS)).toEqual([['a', 'b'], true])
    expect(names([...records, seen('c', START + 60_000)], START + 61_000)).toEqual([['c'], false])
  })

  test('but none that said farewell, and none for longer than nodes are remembered', () => {
    expect(names([seen('a', START, true)], START + SILENCE_MS)).toEqual([[], false])
    expect(names([seen('a', START)], START + 11 * 60_000)).toEqual([[], false])
    expect(names([], START)).toEqual([[], false])
  })
})
