/**
 * Simulates a fleet with the router's own code: who is served by a node that has the adapter, how even the load is, what
 * moves when nodes go or come, and what a decision costs. `npm run bench:routing [-- --quick]`.
 */

import type { FleetNode } from '../edge/fleet/fleet-snapshot.ts'
import { keyHash } from '../edge/routing/hash.ts'
import { createRing, rankOwners } from '../edge/routing/ring.ts'
import { describe, type Policy, simulate, startNode, type Traffic } from './fleet-simulation.ts'

const quick = process.argv.includes('--quick')
const SEEDS = quick ? [1, 2] : [1, 2, 3, 4, 5]

const fixed = (value: number, digits = 3) => value.toFixed(digits)
const spread = (values: number[], digits = 3) => {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length
  return `${fixed(mean, digits)} (${fixed(Math.min(...values), digits)}–${fixed(Math.max(...values), digits)})`
}

function printPolicies(): void {
  const common = { nodes: 8, adapters: 1_000, exponent: 1, inFlight: 128, requests: quick ? 60_000 : 200_000 }
  console.log('\nServed by a node that has the adapter: Zipf 1, 1,000 adapters, 8 nodes, 128 in flight, bound 1.25;')
  console.log(
    `mean (least–most) of ${SEEDS.length} hash seeds. No slack: memories hold 1,000 adapters in all; 28 %: 1,280; 2x: 2,000.`,
  )
  console.log('| policy | no slack | 28 % slack | 2x | in flight max/mean | loads a 1,000 requests, no slack |')
  console.log('|---|---|---|---|---|---|')
  const rows: [string, Partial<Traffic> & { policy: Policy }][] = [
    ['random', { policy: 'random' }],
    ['bounded rendezvous hash alone', { policy: 'bounded hash' }],
    ['+ residency correction', { policy: '+ residency' }],
    ['+ owners for hot adapters = Ringlet, exact view', { policy: 'ringlet' }],
    ['Ringlet, view 1.5 s old', { policy: 'ringlet', staleMs: 1_500 }],
    ['Ringlet, view 1.5 s old, 4 isolates', { policy: 'ringlet', staleMs: 1_500, isolates: 4 }],
  ]
  for (const [name, options] of rows) {
    const at = (capacity: number) => SEEDS.map((seed) => simulate({ ...common, ...options, seed, capacity }))
    const [none, some, double] = [at(125), at(160), at(250)]
    const cells = [none, some, double].map((runs) => spread(runs.map((run) => run.held)))
    const ratio = spread(none.map((run) => run.inFlightRatio))
    const loads = spread(
      none.map((run) => run.loadsPer1000),
      0,
    )
    console.log(`| ${name} | ${cells.join(' | ')} | ${ratio} | ${loads} |`)
  }
}

function printSkews(): void {
  console.log('\nOther skews (Ringlet, view 1.5 s old, no slack):')
  console.log('| Zipf exponent | served by a holder | in flight max/mean |')
  console.log('|---|---|---|')
  for (const exponent of [0.6, 0.8, 1, 1.2, 1.5]) {
    const runs = SEEDS.map((seed) => {
      const requests = quick ? 60_000 : 120_000
      const fleet = { nodes: 8, adapters: 1_000, inFlight: 128, capacity: 125, staleMs: 1_500 }
      return simulate({ policy: 'ringlet', exponent, seed, requests, ...fleet })
    })
    console.log(
      `| ${exponent} | ${spread(runs.map((run) => run.held))} | ${spread(runs.map((run) => run.inFlightRatio))} |`,
    )
  }
}

function printKeys(): void {
  console.log('\nKeys: 10,000 adapters, 20 hash seeds (worst in brackets).')
  console.log(
    '| nodes | keys max/mean | moved when one node goes, of 1/N | needless | moved when one comes, of 1/(N+1) | needless |',
  )
  console.log('|---|---|---|---|---|---|')
  for (const count of [4, 8, 16]) {
    const results = Array.from({ length: 20 }, (_, seed) => countKeys(count, `seed-${seed}`))
    const worst = (pick: (result: (typeof results)[number]) => number) => {
      const values = results.map(pick)
      return `${fixed(values.reduce((sum, value) => sum + value, 0) / values.length)} (${fixed(Math.max(...values))})`
    }
    const needless = (pick: (result: (typeof results)[number]) => number) =>
      results.reduce((sum, one) => sum + pick(one), 0)
    console.log(
      `| ${count} | ${worst((one) => one.maxOverMean)} | ${worst((one) => one.movedOnLoss * count)} | ${needless((one) => one.needlessOnLoss)} | ${worst((one) => one.movedOnJoin * (count + 1))} | ${needless((one) => one.needlessOnJoin)} |`,
    )
  }
}

function countKeys(count: number, secret: string) {
  const keys = Array.from({ length: 10_000 }, (_, n) => keyHash(`hub:org/adapter-${n}`, secret))
  const nodes = Array.from({ length: count + 1 }, (_, n) => describe(startNode(`node-${n}`, 0), false, 0))
  const ownersIn = (members: FleetNode[]) => {
    const ring = createRing(members)
    return keys.map((key) => members[rankOwners(ring, key, 1)[0]!]!.nodeId)
  }
  const before = ownersIn(nodes.slice(0, count))
  const lost = ownersIn(nodes.slice(1, count))
  const joined = ownersIn(nodes)
  const [gone, come] = [nodes[0]!.nodeId, nodes[count]!.nodeId]
  const share = (predicate: (owner: string, index: number) => boolean) => before.filter(predicate).length / keys.length
  const counts = nodes.slice(0, count).map(({ nodeId }) => before.filter((owner) => owner === nodeId).length)
  return {
    maxOverMean: Math.max(...counts) / (keys.length / count),
    movedOnLoss: share((owner, n) => owner !== lost[n]),
    needlessOnLoss: share((owner, n) => owner !== lost[n] && owner !== gone) * keys.length,
    movedOnJoin: share((owner, n) => owner !== joined[n]),
    needlessOnJoin: share((owner, n) => owner !== joined[n] && joined[n] !== come) * keys.length,
  }
}

function printLarge(): void {
  console.log('\nLarge fleets (Zipf 1, view 1.5 s old, 28 % slack, one isolate):')
  console.log(
    '| nodes | adapters | in flight | served by a holder, of repeated adapters | in flight max/mean | decision µs p50 / p99 |',
  )
  console.log('|---|---|---|---|---|---|')
  const sizes: [number, number, number][] = quick
    ? [[16, 10_000, 60_000]]
    : [
        [16, 10_000, 200_000],
        [100, 100_000, 300_000],
        [1_000, 1_000_000, 150_000],
      ]
  for (const [nodes, adapters, requests] of sizes) {
    const capacity = Math.round((adapters / nodes) * 1.28)
    const fleet = { nodes, adapters, requests, capacity, inFlight: nodes * 16, staleMs: 1_500 }
    const run = simulate({ policy: 'ringlet', exponent: 1, seed: 1, ...fleet })
    const speed = `${fixed(run.decisionUs.p50, 1)} / ${fixed(run.decisionUs.p99, 1)}`
    console.log(
      `| ${nodes} | ${adapters} | ${nodes * 16} | ${fixed(run.heldAgain)} | ${fixed(run.inFlightRatio)} | ${speed} |`,
    )
  }
}

function printChanges(): void {
  console.log(
    '\nA node goes, or comes, in the middle of the run (8 nodes, no slack): served by a holder in each twentieth.',
  )
  const requests = quick ? 60_000 : 200_000
  for (const [name, nodes] of [
    ['8 → 7', 7],
    ['8 → 9', 9],
    ['8 → 16', 16],
  ] as const) {
    const fleet = { nodes: 8, adapters: 1_000, inFlight: 128, capacity: 125, staleMs: 1_500 }
    const run = simulate({
      policy: 'ringlet',
      exponent: 1,
      seed: 1,
      requests,
      ...fleet,
      change: { at: requests / 2, nodes },
    })
    console.log(
      `${name}: ${run.course
        .slice(8, 16)
        .map((part) => fixed(part, 2))
        .join(' ')}`,
    )
  }
}

printKeys()
printPolicies()
printSkews()
printChanges()
printLarge()
