// Times several things in turns, so that a machine whose speed changes within minutes treats them alike.

export interface Timing {
  medianMs: number
  minMs: number
  /** Half the distance between the quartiles, relative to the median. */
  spread: number
}

export function interleave(steps: Readonly<Record<string, () => void>>, rounds: number): Record<string, Timing> {
  const names = Object.keys(steps)
  const times = new Map<string, number[]>(names.map((name) => [name, []]))
  for (const name of names) {
    steps[name]!()
    steps[name]!()
  }
  for (let round = 0; round < rounds; round++) {
    for (const name of names) {
      // Twice: the first run brings its own data back into the caches that the thing before it emptied.
      steps[name]!()
      const start = performance.now()
      steps[name]!()
      times.get(name)!.push(performance.now() - start)
    }
  }
  return Object.fromEntries(names.map((name) => [name, summarise(times.get(name)!)]))
}

function summarise(times: number[]): Timing {
  times.sort((a, b) => a - b)
  const at = (part: number): number => times[Math.floor(part * (times.length - 1))]!
  return { medianMs: at(0.5), minMs: at(0), spread: (at(0.75) - at(0.25)) / 2 / at(0.5) }
}
