/** What a node holds, as placement needs it: 32-bit hashes of refs with their tier, a few bytes an adapter. */

import type { AdapterTier, ResidentAdapter } from '../../shared/fleet.ts'
import { residentHash } from '../routing/hash.ts'
import type { ResidentIndex } from '../routing/place.ts'

/** Tiers worth routing to, by code; `remote` is what every node has. */
const TIER_CODES: readonly AdapterTier[] = ['remote', 'disk', 'ram', 'engine']

/** Hashes by tier, as they travel from a registry shard to an isolate. */
export interface ResidentHashes {
  disk: Uint32Array
  ram: Uint32Array
  engine: Uint32Array
}

export const NO_RESIDENTS: ResidentHashes = {
  disk: new Uint32Array(0),
  ram: new Uint32Array(0),
  engine: new Uint32Array(0),
}

export function toResidentHashes(resident: readonly ResidentAdapter[]): ResidentHashes {
  const inTier = (tier: AdapterTier) =>
    Uint32Array.from(
      resident.filter((adapter) => adapter.tier === tier),
      (adapter) => residentHash(adapter.ref),
    )
  return { disk: inTier('disk'), ram: inTier('ram'), engine: inTier('engine') }
}

/**
 * Open addressing over one Uint32Array, at most half full: a million residents in a fleet of 1,000 nodes are 10 MB in an
 * isolate, where a Map would be 60. The tier is kept apart, one byte a cell; code 0 marks a free cell.
 */
export function createResidentIndex(hashes: ResidentHashes): ResidentIndex {
  const count = hashes.disk.length + hashes.ram.length + hashes.engine.length
  const cells = 2 ** Math.ceil(Math.log2(Math.max(2, count * 2)))
  const mask = cells - 1
  const cellHashes = new Uint32Array(cells)
  const cellTiers = new Uint8Array(cells)

  const find = (hash: number): number => {
    let cell = hash & mask
    while (cellTiers[cell] !== 0 && cellHashes[cell] !== hash) {
      cell = (cell + 1) & mask
    }
    return cell
  }
  // Ascending tiers: where a ref is named twice, the nearest to the engine stays.
  for (const tier of ['disk', 'ram', 'engine'] as const) {
    for (const hash of hashes[tier]) {
      const cell = find(hash)
      cellHashes[cell] = hash
      cellTiers[cell] = TIER_CODES.indexOf(tier)
    }
  }
  return {
    count,
    tierOf: (hash) => {
      const code = cellTiers[find(hash)]!
      return code === 0 ? undefined : TIER_CODES[code]
    },
  }
}
