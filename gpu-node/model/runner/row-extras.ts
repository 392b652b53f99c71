/** Gains and shifts by row, for decode batches in which some adapter has DoRA magnitudes or biases. */

import type { OrtBinding } from '../../ort/binding.ts'
import type { OrtEnvironment } from '../../ort/environment.ts'
import { OrtTensor } from '../../ort/tensor.ts'
import { loraInputs } from '../graph/graph-names.ts'
import { isHead, type MatrixPlan, planMatrices, type WeightPlan } from '../graph/weight-plan.ts'
import type { LoadedAdapter } from './loaded-adapter.ts'

interface MatrixExtras {
  matrix: MatrixPlan
  /** `[maxRows, out]` each. */
  gain: Float32Array
  shift: Float32Array
}

export class RowExtras {
  readonly #environment: OrtEnvironment
  readonly #matrices: readonly MatrixPlan[]
  readonly #maxRows: number
  /** Made when first needed: most engines never see such an adapter. */
  #extras: MatrixExtras[] | undefined
  readonly #tensors = new Map<string, OrtTensor>()

  constructor(environment: OrtEnvironment, plan: WeightPlan, maxRows: number) {
    this.#environment = environment
    this.#matrices = planMatrices(plan)
    this.#maxRows = maxRows
  }

  /** Neutral for rows without: gain 1, shift 0. */
  fill(rows: readonly (LoadedAdapter | undefined)[]): void {
    for (const { matrix, gain, shift } of this.#arrays()) {
      const names = loraInputs(matrix, 0)
      const size = matrix.outFeatures
      for (const [row, adapter] of rows.entries()) {
        const parts = adapter?.packed.parts
        const mine = gain.subarray(row * size, (row + 1) * size)
        const shiftOfRow = shift.subarray(row * size, (row + 1) * size)
        const gains = parts?.[names.gain]
        const shifts = parts?.[names.shift]
        gains === undefined ? mine.fill(1) : mine.set(gains)
        shifts === undefined ? shiftOfRow.fill(0) : shiftOfRow.set(shifts)
      }
    }
  }

  bind(binding: OrtBinding, rows: number, head: boolean): void {
    for (const { matrix, gain, shift } of this.#arrays()) {
      if (!isHead(matrix) || head) {
        const names = loraInputs(matrix, 0)
        binding.input(names.gain, this.#tensor(names.gain, matrix, gain, rows))
        binding.input(names.shift, this.#tensor(names.shift, matrix, shift, rows))
      }
    }
  }

  dispose(): void {
    for (const tensor of this.#tensors.values()) {
      tensor.dispose()
    }
    this.#tensors.clear()
  }

  #arrays(): MatrixExtras[] {
    this.#extras ??= this.#matrices.map((matrix) => ({
      matrix,
      gain: new Float32Array(this.#maxRows * matrix.outFeatures),
      shift: new Float32Array(this.#maxRows * matrix.outFeatures),
    }))
    return this.#extras
  }

  #tensor(name: string, matrix: MatrixPlan, data: Float32Array, rows: number): OrtTensor {
    const key = `${name}:${rows}`
    const known = this.#tensors.get(key)
    if (known !== undefined) {
      return known
    }
    const shape = [rows, 1, matrix.outFeatures]
    const tensor = new OrtTensor(this.#environment, 'float32', shape, data)
    this.#tensors.set(key, tensor)
    return tensor
  }
}
