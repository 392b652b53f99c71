/**
 * Longrope: which of a model's two rotary tables a row uses. A sequence keeps one table for all its positions, chosen by
 * the length of its prompt, as transformers chooses at prefill; its keys are useless to a sequence with the other table.
 */

import type { DecoderSpec } from '../decoder-spec.ts'

export class RopeChoice {
  /** The graph takes rows of the tables as input. */
  readonly usesPositionIds: boolean
  /** Rows of the first table; those of the second follow. */
  readonly #tableRows: number
  readonly #originalPositions: number
  readonly #long: Uint8Array

  constructor(decoder: DecoderSpec, maxRows: number) {
    const table = decoder.ropeTables.find((it) => it.long !== undefined)
    this.usesPositionIds = table !== undefined
    this.#tableRows = table?.positions ?? 0
    this.#originalPositions = table?.long?.originalPositions ?? 0
    this.#long = new Uint8Array(maxRows)
  }

  isLong(promptPositions: number): boolean {
    return this.usesPositionIds && promptPositions > this.#originalPositions
  }

  choose(row: number, promptPositions: number): void {
    this.#long[row] = this.isLong(promptPositions) ? 1 : 0
  }

  copyRow(from: number, to: number): void {
    this.#long[to] = this.#long[from]!
  }

  tableRow(row: number, position: number): number {
    return this.#long[row] === 1 ? this.#tableRows + position : position
  }
}
