/** The numbers that placement promises, on a shorter run of the simulator: `npm run bench:routing` has the long ones. */

import { describe, expect, test } from 'vitest'
import { simulate, type Traffic } from '../../../bench/fleet-simulation.ts'

const traffic: Traffic = {
  policy: 'ringlet',
  seed: 3,
  nodes: 8,
  adapters: 1_000,
  exponent: 1,
  inFlight: 128,
  capacity: 125,
  requests: 40_000,
}

describe('Zipf 1, 1,000 adapters, 8 nodes, 128 in flight', () => {
  test('no slack: 0.93 served by a node that has the adapter, the fullest node at most 1.25 of the mean', () => {
    const run = simulate(traffic)
    expect(run.held).toBeGreaterThanOrEqual(0.93)
    expect(run.inFlightRatio).toBeLessThanOrEqual(1.25)
  })

  test('each part of the policy earns its keep', () => {
    const held = (policy: Traffic['policy']) => simulate({ ...traffic, policy, requests: 20_000 }).held
    const [random, hashed, resident, whole] = [
      held('random'),
      held('bounded hash'),
      held('+ residency'),
      held('ringlet'),
    ]
    expect(hashed).toBeGreaterThan(random + 0.2)
    expect(resident).toBeGreaterThan(hashed)
    expect(whole).toBeGreaterThan(resident)
  })

  test('28 % slack and a picture of the fleet that is 1.5 s old: 0.97', () => {
    expect(simulate({ ...traffic, capacity: 160, staleMs: 1_500 }).held).toBeGreaterThanOrEqual(0.97)
  })

  test('a node lost in the middle: the others take its adapters over within some thousand requests', () => {
    const run = simulate({ ...traffic, capacity: 250, change: { at: 20_000, nodes: 7 } })
    expect(run.course[11]!).toBeGreaterThan(run.course[9]! - 0.05)
  })
})
