/**
 * Who owns which KV row. A decode step runs rows 0 … n-1, so running sequences are kept a prefix of the rows:
 *
 *     0 … running-1           | running … maxRows-1
 *     running, one row each   | prefilling ones and free rows, mixed
 *
 * When a running sequence ends, the last running row is copied over its own. When a prefill is done, its row becomes row
 * `running`; if another prefilling sequence has that row, the two trade places.
 */

import type { ModelRunner } from './engine-types.ts'
import type { Sequence } from './sequence.ts'

export class KvRows {
  readonly #runner: ModelRunner
  readonly #owners: (Sequence | undefined)[]
  #running = 0

  constructor(runner: ModelRunner) {
    this.#runner = runner
    this.#owners = new Array(runner.maxRows).fill(undefined)
  }

  get runningCount(): number {
    return this.#running
  }

  get freeCount(): number {
    return this.#owners.filter((owner) => owner === undefined).length
  }

  get owners(): readonly (Sequence | undefined)[] {
    return this.#owners
  }

  running(): Sequence[] {
    // Rows below `running` always have an owner.
    return this.#owners.slice(0, this.#running) as Sequence[]
  }

  prefilling(): Sequence[] {
    return this.#owners.slice(this.#running).filter((owner) => owner !== undefined)
  }

  /** The caller has seen that a row is free. The lowest free one: the likeliest to be row `running` when the prefill is done. */
  takeForPrefill(sequence: Sequence): number {
    const kvRow = this.#owners.indexOf(undefined)
    this.#owners[kvRow] = sequence
    sequence.kvRow = kvRow
    return kvRow
  }

  /** The prefill is done; from the next step on the sequence decodes. */
  startRunning(sequence: Sequence): void {
    const from = rowOf(sequence)
    const to = this.#running
    const inTheWay = this.#owners[to]
    if (inTheWay === undefined) {
      this.#move(sequence, to)
    } else if (inTheWay !== sequence) {
      const saved = this.#runner.saveKv({ kvRow: to, start: 0, end: inTheWay.filled })
      this.#move(sequence, to)
      this.#runner.restoreKv(from, saved, inTheWay.filled)
      this.#owners[from] = inTheWay
      inTheWay.kvRow = from
    }
    this.#running++
  }

  release(sequence: Sequence): void {
    const kvRow = rowOf(sequence)
    this.#owners[kvRow] = undefined
    sequence.kvRow = undefined
    if (kvRow >= this.#running) {
      return
    }
    this.#running--
    const last = this.#owners[this.#running]
    if (last !== undefined) {
      this.#move(last, kvRow)
    }
  }

  #move(sequence: Sequence, to: number): void {
    const from = rowOf(sequence)
    if (sequence.filled > 0) {
      this.#runner.copyRow(from, to, sequence.filled)
    }
    this.#owners[from] = undefined
    this.#owners[to] = sequence
    sequence.kvRow = to
  }
}

function rowOf(sequence: Sequence): number {
  if (sequence.kvRow === undefined) {
    throw new Error(`sequence ${sequence.id} owns no KV row`)
  }
  return sequence.kvRow
}
