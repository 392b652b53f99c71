/** A sum over the last 60 seconds in one-second steps. Pure: time is given. Never counts less than the true last minute. */

const SECONDS = 60

export interface SlidingMinute {
  /** The second (unix) that `amounts[0]` stands for; `amounts` is newest last and has at most 61 entries. */
  firstSecond: number
  amounts: number[]
}

export function createSlidingMinute(): SlidingMinute {
  return { firstSecond: 0, amounts: [] }
}

/** What was added in the last minute. */
export function minuteTotal(minute: SlidingMinute, now: number): number {
  forget(minute, now)
  return minute.amounts.reduce((sum, amount) => sum + amount, 0)
}

export function addToMinute(minute: SlidingMinute, now: number, amount: number): void {
  forget(minute, now)
  const second = Math.floor(now / 1000)
  if (minute.amounts.length === 0) {
    minute.firstSecond = second
  }
  // A clock that goes back adds to the newest second it knows.
  const index = Math.max(second - minute.firstSecond, minute.amounts.length - 1)
  while (minute.amounts.length <= index) {
    minute.amounts.push(0)
  }
  minute.amounts[index] = (minute.amounts[index] ?? 0) + amount
}

/** Seconds until the total has shrunk to `target` or less, if nothing is added meanwhile; at least 1. */
export function secondsUntilTotal(minute: SlidingMinute, now: number, target: number): number {
  let total = minuteTotal(minute, now)
  const second = Math.floor(now / 1000)
  for (const [i, amount] of minute.amounts.entries()) {
    if (total <= target) {
      break
    }
    total -= amount
    const gone = minute.firstSecond + i + SECONDS + 1 - second
    if (total <= target) {
      return Math.max(1, gone)
    }
  }
  return 1
}

/** A second leaves when all of it is more than a minute old. */
function forget(minute: SlidingMinute, now: number): void {
  const oldest = Math.floor(now / 1000) - SECONDS
  const gone = Math.min(Math.max(0, oldest - minute.firstSecond), minute.amounts.length)
  minute.amounts.splice(0, gone)
  minute.firstSecond += gone
}
