// What a bench says of the machine it ran on, and how it sums up what it measured.

import { availableParallelism, cpus, loadavg, totalmem } from 'node:os'

export function describeMachine(): string {
  const model = cpus()[0]?.model.trim() ?? 'unknown processor'
  const memory = (totalmem() / 2 ** 30).toFixed(0)
  const load = loadavg()[0]?.toFixed(1)
  return `${model}, ${availableParallelism()} cores, ${memory} GiB; Node ${process.versions.node}; load before: ${load}`
}

/** `q` from 0 to 1, between two numbers in proportion; NaN of no numbers. */
export function quantile(numbers: readonly number[], q: number): number {
  const sorted = numbers.toSorted((a, b) => a - b)
  const place = q * (sorted.length - 1)
  const below = sorted[Math.floor(place)] ?? Number.NaN
  const above = sorted[Math.ceil(place)] ?? Number.NaN
  return below + (above - below) * (place - Math.floor(place))
}

/** `median (least–most)`. */
export function spread(numbers: readonly number[], digits: number): string {
  const text = (q: number) => quantile(numbers, q).toFixed(digits)
  return `${text(0.5)} (${text(0)}–${text(1)})`
}
