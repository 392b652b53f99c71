/** The nodes that placement ranks, prepared once a snapshot: their hashes and weights. Knows nothing of load or adapters. */

import { nodeHash, rendezvousScore } from './hash.ts'

/** What the ring must know of a node. */
export interface RingNode {
  nodeId: string
  maxSequences: number
  draining: boolean
}

export interface Ring<N extends RingNode = RingNode> {
  nodes: readonly N[]
  /** One a node, by index. */
  hashes: Uint32Array
  /** Capacity: a node with twice the sequences owns twice the keys and bears twice the load. */
  weights: Float64Array
  /** 1 where a node drains: read for each node at each decision, and a node's own record lies far away in memory. */
  draining: Uint8Array
  /** Of the nodes that don't drain. */
  totalWeight: number
  equalWeights: boolean
}

export function createRing<N extends RingNode>(nodes: readonly N[]): Ring<N> {
  const weights = Float64Array.from(nodes, (node) => node.maxSequences)
  return {
    nodes,
    hashes: Uint32Array.from(nodes, (node) => nodeHash(node.nodeId)),
    weights,
    draining: Uint8Array.from(nodes, (node) => Number(node.draining)),
    totalWeight: nodes.reduce((sum, node) => sum + (node.draining ? 0 : node.maxSequences), 0),
    equalWeights: weights.every((weight) => weight === weights[0]),
  }
}

/**
 * How strongly a node claims a key; the highest owns it. With unequal weights `-w / ln(u)` (weighted rendezvous hashing,
 * Schindelhauer and Schomaker 2005), which orders as the plain hash where the weights are equal.
 */
export function claim(ring: Ring, index: number, key: number): number {
  const score = rendezvousScore(key, ring.hashes[index]!)
  return ring.equalWeights ? score : -ring.weights[index]! / Math.log((score + 0.5) / 0x1_0000_0000)
}

/** Indices of the `count` nodes that don't drain with the highest claims, highest first; equal claims by node id. */
export function rankOwners(ring: Ring, key: number, count: number): number[] {
  const ranked: { index: number; claim: number }[] = []
  for (let index = 0; index < ring.nodes.length; index++) {
    if (ring.draining[index] === 1) {
      continue
    }
    const nodeClaim = claim(ring, index, key)
    const last = ranked[count - 1]
    // Nearly all end here, so nothing is made before.
    if (last !== undefined && nodeClaim < last.claim) {
      continue
    }
    const entry = { index, claim: nodeClaim }
    const at = ranked.findIndex((other) => outranks(ring, entry, other))
    ranked.splice(at === -1 ? ranked.length : at, 0, entry)
    ranked.length = Math.min(ranked.length, count)
  }
  return ranked.map((entry) => entry.index)
}

function outranks(ring: Ring, a: { index: number; claim: number }, b: { index: number; claim: number }): boolean {
  return a.claim !== b.claim ? a.claim > b.claim : ring.nodes[a.index]!.nodeId < ring.nodes[b.index]!.nodeId
}
