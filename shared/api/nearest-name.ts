/** The known name closest to a misspelt one, for messages that help. */

/** `undefined` when nothing is near: more than a third of the letters differ, and no name contains the other. */
export function nearestName(given: string, known: readonly string[]): string | undefined {
  const wanted = plain(given)
  let best: { name: string; distance: number } | undefined
  for (const name of known) {
    const candidate = plain(name)
    const contained =
      candidate.length > 3 && wanted.length > 3 && (wanted.includes(candidate) || candidate.includes(wanted))
    const distance = wanted === candidate ? 0 : contained ? 1 : editDistance(wanted, candidate)
    if (distance <= Math.max(1, Math.floor(candidate.length / 3)) && (best === undefined || distance < best.distance)) {
      best = { name, distance }
    }
  }
  return best?.name
}

/** Letter case and separators apart, `adapterId` is `adapter_id`. Cut, since a field name may be megabytes long. */
function plain(name: string): string {
  return name
    .slice(0, 64)
    .toLowerCase()
    .replace(/[^a-z0-9]/g, '')
}

/** Levenshtein's distance by rows. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const replaced = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(replaced, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1))
    }
    row = next
  }
  return row[b.length] ?? 0
}
