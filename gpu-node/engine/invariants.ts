/** What must be true between any two steps, as a pure check of a snapshot; every violation is named. */

import type { SequenceStatus } from './sequence.ts'

export interface EngineSnapshot {
  maxRows: number
  runningRows: number
  freeRows: number
  /** By row: the sequence that owns it. */
  rowOwners: readonly (string | undefined)[]
  sequences: readonly SequenceView[]
  slots: readonly { adapterSlot: number; digest: string; leases: number }[]
  waiting: number
  /** Sequences accepted and ended since start. */
  submitted: number
  ended: number
  prefixViolations: readonly string[]
}

export interface SequenceView {
  id: string
  status: SequenceStatus
  kvRow: number | undefined
  digest: string | undefined
  adapterSlot: number | undefined
  holdsLease: boolean
  filled: number
  length: number
  capacity: number
}

export function checkInvariants(snapshot: EngineSnapshot): string[] {
  return [
    ...checkRows(snapshot),
    ...checkLeases(snapshot),
    ...snapshot.sequences.flatMap(checkSequence),
    ...checkCounts(snapshot),
    ...snapshot.prefixViolations,
  ]
}

/** Free + used rows = all rows; each row has one owner, who agrees; running sequences are a prefix. */
function checkRows({ maxRows, runningRows, freeRows, rowOwners, sequences }: EngineSnapshot): string[] {
  const found: string[] = []
  const owned = sequences.filter((sequence) => sequence.kvRow !== undefined)
  if (owned.length + freeRows !== maxRows) {
    found.push(`${owned.length} used and ${freeRows} free rows are not ${maxRows}`)
  }
  for (const sequence of owned) {
    if (rowOwners[sequence.kvRow as number] !== sequence.id) {
      found.push(`sequence ${sequence.id} believes it owns row ${sequence.kvRow}`)
    }
    const inPrefix = (sequence.kvRow as number) < runningRows
    if (inPrefix !== (sequence.status === 'running')) {
      found.push(`sequence ${sequence.id} is ${sequence.status} in row ${sequence.kvRow} of ${runningRows} running`)
    }
  }
  return found
}

/** Leases = sequences with a row, per adapter; no adapter lies in two slots. */
function checkLeases({ sequences, slots }: EngineSnapshot): string[] {
  const found: string[] = []
  const digests = new Set(slots.map((slot) => slot.digest))
  if (digests.size !== slots.length) {
    found.push('an adapter lies in two slots')
  }
  for (const slot of slots) {
    const users = sequences.filter((sequence) => sequence.holdsLease && sequence.digest === slot.digest)
    if (users.length !== slot.leases) {
      found.push(`adapter ${slot.digest} has ${slot.leases} leases and ${users.length} sequences`)
    }
    if (users.some((user) => user.adapterSlot !== slot.adapterSlot)) {
      found.push(`a sequence of adapter ${slot.digest} runs with another slot than ${slot.adapterSlot}`)
    }
  }
  for (const sequence of sequences) {
    if (sequence.holdsLease && !digests.has(sequence.digest ?? '')) {
      found.push(`sequence ${sequence.id} runs with adapter ${sequence.digest}, which is not resident`)
    }
  }
  return found
}

function checkSequence(sequence: SequenceView): string[] {
  const found: string[] = []
  const active = sequence.status === 'prefilling' || sequence.status === 'running'
  if (active !== (sequence.kvRow !== undefined)) {
    found.push(`sequence ${sequence.id} is ${sequence.status} with row ${sequence.kvRow}`)
  }
  if (sequence.holdsLease !== (active && sequence.digest !== undefined)) {
    found.push(`sequence ${sequence.id} is ${sequence.status} and ${sequence.holdsLease ? 'has' : 'lacks'} a lease`)
  }
  if (sequence.filled > sequence.length || sequence.length > sequence.capacity) {
    found.push(`sequence ${sequence.id}: filled ${sequence.filled}, length ${sequence.length}, of ${sequence.capacity}`)
  }
  return found
}

/** Each accepted sequence ends exactly once. */
function checkCounts({ submitted, ended, sequences, waiting }: EngineSnapshot): string[] {
  const found: string[] = []
  if (submitted !== ended + sequences.length) {
    found.push(`${submitted} sequences were accepted, ${ended} ended, ${sequences.length} are here`)
  }
  const inQueue = sequences.filter((sequence) => sequence.status === 'waiting').length
  if (inQueue !== waiting) {
    found.push(`${inQueue} sequences are waiting, ${waiting} are in the queue`)
  }
  return found
}
