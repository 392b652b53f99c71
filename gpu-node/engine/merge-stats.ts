/** What several engines report, as one. Pure. */

import type { EngineStats } from './engine-types.ts'

type Counts = { [Key in keyof EngineStats]: EngineStats[Key] extends number ? Key : never }[keyof EngineStats]

/** Largest, not summed: a property of single sequences. */
const LARGEST: readonly Counts[] = ['maxAbortSteps']

export function mergeStats(all: readonly EngineStats[]): EngineStats {
  const first = all[0]!
  const merged: EngineStats = {
    ...first,
    residentAdapters: mergeResident(all.flatMap((stats) => stats.residentAdapters)),
    invariantViolations: all.flatMap((stats, engine) =>
      stats.invariantViolations.map((it) => `engine ${engine}: ${it}`),
    ),
  }
  for (const [key, value] of Object.entries(first)) {
    if (typeof value === 'number') {
      const values = all.map((stats) => stats[key as Counts])
      const largest = LARGEST.includes(key as Counts)
      merged[key as Counts] = largest ? Math.max(...values) : values.reduce((sum, one) => sum + one, 0)
    }
  }
  return merged
}

/** An adapter in two engines is one adapter with the bytes of both. */
function mergeResident(adapters: EngineStats['residentAdapters']): EngineStats['residentAdapters'] {
  const byDigest = new Map<string, EngineStats['residentAdapters'][number]>()
  for (const adapter of adapters) {
    const known = byDigest.get(adapter.digest)
    byDigest.set(
      adapter.digest,
      known === undefined
        ? adapter
        : {
            ...known,
            bytes: known.bytes + adapter.bytes,
            leases: known.leases + adapter.leases,
            pinned: known.pinned || adapter.pinned,
          },
    )
  }
  return [...byDigest.values()]
}
