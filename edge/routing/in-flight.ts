/** What this isolate has begun and ended on each node lately; with it, counts that a node reported are brought up to now. */

/** Longest time looked back, in steps of `STEP_MS`: a heartbeat older than this is of a node that is leaving the ring. */
const STEPS = 128
const STEP_MS = 100

export interface InFlight {
  /** Counts one request on the node until the returned function is called; calling it again does nothing. */
  acquire: (nodeId: string) => () => void
  /** How the count on a node has changed since a time (unix ms). */
  changeSince: (nodeId: string, since: number) => number
}

interface NodeCount {
  /** Net change in each step, a ring buffer; a cell counts only while `stamps` names its step. */
  changes: Int32Array
  stamps: Float64Array
}

export function createInFlight(now: () => number): InFlight {
  const counts = new Map<string, NodeCount>()

  const change = (nodeId: string, by: 1 | -1): void => {
    const count = counts.get(nodeId) ?? newCount()
    counts.set(nodeId, count)
    const step = Math.floor(now() / STEP_MS)
    const cell = step % STEPS
    if (count.stamps[cell] !== step) {
      count.stamps[cell] = step
      count.changes[cell] = 0
    }
    count.changes[cell]! += by
  }

  return {
    acquire: (nodeId) => {
      change(nodeId, 1)
      let released = false
      return () => {
        if (!released) {
          released = true
          change(nodeId, -1)
        }
      }
    },
    changeSince: (nodeId, since) => {
      const count = counts.get(nodeId)
      if (count === undefined) {
        return 0
      }
      const first = Math.floor(since / STEP_MS) + 1
      let sum = 0
      for (let cell = 0; cell < STEPS; cell++) {
        if (count.stamps[cell]! >= first) {
          sum += count.changes[cell]!
        }
      }
      return sum
    },
  }
}

function newCount(): NodeCount {
  return { changes: new Int32Array(STEPS), stamps: new Float64Array(STEPS).fill(-1) }
}
