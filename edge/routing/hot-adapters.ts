/** Which adapters are hot and how many owners each has: grows at once, shrinks late. Knows keys and times, no nodes. */

/**
 * An adapter gets one owner more for each quarter of a node's fair share of the traffic that it draws. Simulated (Zipf 1,
 * 1,000 adapters, 8 nodes): with 1/2 the head adapters crowd the tail out of their owners (0.925 to 0.938 served by a
 * holder, no slack), with 1/4 they don't (0.942 to 0.954).
 */
export const SHARE_PER_OWNER = 0.25
export const MAX_OWNERS = 16
/** Fewer owners are taken only when the share has stayed below this part of what they need… */
const SHRINK_BELOW = 0.6
/** …for this long. */
const SHRINK_AFTER_MS = 30_000
/** Requests seen this long ago count half. */
const HALF_LIFE_MS = 20_000
/** Shares are unknown until this many (decayed) requests were seen. */
const MIN_REQUESTS = 50
/** Adapters tracked at once; when full, those with the lowest counts are forgotten. */
const MAX_TRACKED = 4096

interface Heat {
  /** Decayed count as of `at`. */
  count: number
  at: number
  owners: number
  /** Since when fewer owners would do; `undefined`: they are needed. */
  coolSince: number | undefined
}

export interface HotAdapters {
  /** Counts a request for the key and says how many of `nodes` nodes should own it. */
  note: (key: number, nodes: number) => number
  /** The same without counting. */
  owners: (key: number) => number
  /** The key's part of this isolate's recent requests, in [0, 1]. */
  share: (key: number) => number
}

export function createHotAdapters(now: () => number): HotAdapters {
  const heats = new Map<number, Heat>()
  let total = 0
  let totalAt = now()

  const share = (key: number): number => {
    const heat = heats.get(key)
    const time = now()
    const all = decayed(total, time - totalAt)
    return heat === undefined || all < MIN_REQUESTS ? 0 : Math.min(1, decayed(heat.count, time - heat.at) / all)
  }

  return {
    share,
    owners: (key) => heats.get(key)?.owners ?? 1,
    note: (key, nodes) => {
      const time = now()
      total = decayed(total, time - totalAt) + 1
      totalAt = time
      const heat = heats.get(key) ?? { count: 0, at: time, owners: 1, coolSince: undefined }
      heat.count = decayed(heat.count, time - heat.at) + 1
      heat.at = time
      if (!heats.has(key)) {
        if (heats.size >= MAX_TRACKED) {
          forgetColdest(heats, time)
        }
        heats.set(key, heat)
      }
      adjustOwners(heat, share(key) * nodes, nodes, time)
      return heat.owners
    },
  }
}

/** `load`: how many nodes' fair shares the adapter draws. */
function adjustOwners(heat: Heat, load: number, nodes: number, time: number): void {
  const most = Math.max(1, Math.min(nodes, MAX_OWNERS))
  const wanted = Math.min(most, Math.max(1, Math.ceil(load / SHARE_PER_OWNER)))
  if (wanted >= heat.owners || heat.owners > most) {
    heat.owners = wanted
    heat.coolSince = undefined
    return
  }
  if (load >= SHRINK_BELOW * (heat.owners - 1) * SHARE_PER_OWNER) {
    heat.coolSince = undefined
    return
  }
  heat.coolSince ??= time
  if (time - heat.coolSince >= SHRINK_AFTER_MS) {
    heat.owners = wanted
    heat.coolSince = undefined
  }
}

function decayed(count: number, elapsedMs: number): number {
  return count * 2 ** (-elapsedMs / HALF_LIFE_MS)
}

/** Drops the colder half, so that the sort is paid once in thousands of new adapters. */
function forgetColdest(heats: Map<number, Heat>, time: number): void {
  const byCount = [...heats].sort((a, b) => decayed(a[1].count, time - a[1].at) - decayed(b[1].count, time - b[1].at))
  for (const [key] of byCount.slice(0, MAX_TRACKED / 2)) {
    heats.delete(key)
  }
}
