/** What leaves a tier to make room: pure policy for RAM and disk alike. */

export interface Evictable {
  key: string
  bytes: number
  /** ms; larger is later. */
  lastUsed: number
  /** Who used it last; its bytes count as his. */
  tenantId: string
  /** Leased or pinned: stays. */
  held: boolean
}

export interface RoomWanted {
  budgetBytes: number
  /** Of what shall come in. */
  bytes: number
  tenantId: string
  now: number
  /** Unused for this long: goes first, whoever's it is. */
  staleAfterMs: number
}

/**
 * Keys to evict, in order; `undefined` when even all that may go is not enough. Without pressure nobody is limited. Under
 * pressure what nobody used for long goes first; then the tenant with most bytes, the newcomer's included, gives his least
 * recently used. So a tenant who cycles through many adapters evicts his own, and one below an equal share loses nothing.
 */
export function chooseVictims(entries: readonly Evictable[], wanted: RoomWanted): string[] | undefined {
  let used = entries.reduce((sum, entry) => sum + entry.bytes, 0)
  if (used + wanted.bytes <= wanted.budgetBytes) {
    return []
  }
  const bytesOf = new Map<string, number>([[wanted.tenantId, wanted.bytes]])
  for (const { tenantId, bytes } of entries) {
    bytesOf.set(tenantId, (bytesOf.get(tenantId) ?? 0) + bytes)
  }
  const candidates = entries.filter((entry) => !entry.held).sort((a, b) => a.lastUsed - b.lastUsed)
  const stale = candidates.filter((entry) => wanted.now - entry.lastUsed >= wanted.staleAfterMs)
  const lines = byTenant(candidates.filter((entry) => wanted.now - entry.lastUsed < wanted.staleAfterMs))
  const victims: string[] = []
  while (used + wanted.bytes > wanted.budgetBytes) {
    const victim = stale.shift() ?? oldestOfLargest(lines, bytesOf)
    if (victim === undefined) {
      return undefined
    }
    victims.push(victim.key)
    used -= victim.bytes
    bytesOf.set(victim.tenantId, bytesOf.get(victim.tenantId)! - victim.bytes)
  }
  return victims
}

function byTenant(entries: readonly Evictable[]): Map<string, Evictable[]> {
  const lines = new Map<string, Evictable[]>()
  for (const entry of entries) {
    const line = lines.get(entry.tenantId) ?? []
    line.push(entry)
    lines.set(entry.tenantId, line)
  }
  return lines
}

/** Between equals, the one whose oldest is older. */
function oldestOfLargest(
  lines: ReadonlyMap<string, Evictable[]>,
  bytesOf: ReadonlyMap<string, number>,
): Evictable | undefined {
  let best: { line: Evictable[]; bytes: number } | undefined
  for (const [tenantId, line] of lines) {
    const oldest = line[0]
    if (oldest === undefined) {
      continue
    }
    const bytes = bytesOf.get(tenantId)!
    if (
      best === undefined ||
      bytes > best.bytes ||
      (bytes === best.bytes && oldest.lastUsed < best.line[0]!.lastUsed)
    ) {
      best = { line, bytes }
    }
  }
  return best?.line.shift()
}
