/** The part of the ring that is near a client: nodes say their region, Cloudflare the client's continent. */

import { createRing, type Ring, type RingNode } from './ring.ts'

export interface RegionRing<N extends RingNode> {
  ring: Ring<N>
  /** Of its nodes in the whole ring. */
  indices: readonly number[]
}

/** `EU`, `eu` and `EU-west` are one region; a node without a region is near nobody. */
export function regionOf(name: string): string {
  return (name.split('-')[0] ?? '').toUpperCase()
}

export function createRegionRings<N extends RingNode & { region: string }>(ring: Ring<N>): Map<string, RegionRing<N>> {
  const indices = new Map<string, number[]>()
  for (const [index, node] of ring.nodes.entries()) {
    const region = regionOf(node.region)
    if (region !== '') {
      indices.set(region, [...(indices.get(region) ?? []), index])
    }
  }
  return new Map(
    [...indices].map(([region, members]) => [
      region,
      { ring: createRing(members.map((index) => ring.nodes[index]!)), indices: members },
    ]),
  )
}
