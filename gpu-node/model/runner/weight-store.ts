/** The initializers of a base model: read from the checkpoint once, brought into the graph's layout, shared by all sessions. */

import type { OrtEnvironment } from '../../ort/environment.ts'
import { OrtTensor } from '../../ort/tensor.ts'
import type { DecoderSpec, LinearSpec, RopeTable } from '../decoder-spec.ts'
import type { WeightFormat } from '../graph/graph-form.ts'
import { type MatrixPlan, type NormPlan, planMatrices, planNorms, type WeightPlan } from '../graph/weight-plan.ts'
import {
  allocateQuantised,
  QUANTISED_BLOCK,
  type QuantisedBits,
  type QuantisedMatrix,
  quantiseRows,
} from '../quantise.ts'

/** What is needed of a checkpoint. */
export interface WeightSource {
  readonly decoder: DecoderSpec
  readTensor(name: string): Promise<Float32Array>
}

export type Progress = (done: number, total: number) => void

export interface WeightStore {
  initializers: ReadonlyMap<string, OrtTensor>
  bytes: number
  dispose(): void
}

export async function loadWeights(
  environment: OrtEnvironment,
  source: WeightSource,
  plan: WeightPlan,
  format: WeightFormat,
  onProgress: Progress = () => {},
): Promise<WeightStore> {
  const initializers = new Map<string, OrtTensor>()
  let bytes = 0
  const add = (name: string, tensor: OrtTensor): void => {
    initializers.set(name, tensor)
    bytes += typeof tensor.data === 'bigint' ? 0 : tensor.data.byteLength
  }
  const addFloats = (name: string, shape: number[], data: Float32Array): void =>
    add(name, new OrtTensor(environment, 'float32', shape, data))
  const matrices = planMatrices(plan)
  for (const [i, matrix] of matrices.entries()) {
    const weight = await readMatrix(source, matrix)
    const { name, inFeatures, outFeatures } = matrix
    if (format === 'f32' || name.endsWith('.router')) {
      addFloats(`${name}.weight`, [outFeatures, inFeatures], weight)
    } else {
      const bits = format === 'int8' ? 8 : 4
      const { weight: codes, scales } = quantise(weight, outFeatures, inFeatures, bits)
      const blocks = Math.ceil(inFeatures / QUANTISED_BLOCK)
      add(`${name}.weight`, new OrtTensor(environment, 'uint8', [outFeatures, blocks, 4 * bits], codes))
      addFloats(`${name}.scales`, [outFeatures, blocks], scales)
    }
    if (matrix.hasBias) {
      addFloats(`${name}.bias`, [outFeatures], await readBias(source, matrix))
    }
    onProgress(i + 1, matrices.length)
  }
  for (const norm of planNorms(plan)) {
    await addNorm(source, norm, addFloats)
  }
  for (const [i, table] of source.decoder.ropeTables.entries()) {
    addRope(`rope.${i}`, table, addFloats)
  }
  return {
    initializers,
    bytes,
    dispose: () => {
      for (const tensor of initializers.values()) {
        tensor.dispose()
      }
      initializers.clear()
    },
  }
}

function quantise(values: Float32Array, rows: number, columns: number, bits: QuantisedBits): QuantisedMatrix {
  const matrix = allocateQuantised(rows, columns, bits)
  quantiseRows(matrix, 0, values)
  return matrix
}

type AddFloats = (name: string, shape: number[], data: Float32Array) => void

/** `[out, in]` of all parts, multiplied. */
async function readMatrix(source: WeightSource, matrix: MatrixPlan): Promise<Float32Array> {
  const { inFeatures, outFeatures, multiplier } = matrix
  const weight = sharedFloats(inFeatures * outFeatures)
  let row = 0
  for (const part of matrix.parts) {
    weight.set(await readLinear(source, part), row * inFeatures)
    row += part.outFeatures
  }
  return multiplier === 1 ? weight : multiplyInPlace(weight, multiplier)
}

/** A module's weight as `[out, in]`, whichever way the checkpoint stores it. */
export async function readLinear(source: WeightSource, linear: LinearSpec): Promise<Float32Array> {
  const stored = await source.readTensor(linear.weight)
  return linear.transposed ? transpose(stored, linear.inFeatures, linear.outFeatures) : stored
}

async function readBias(source: WeightSource, matrix: MatrixPlan): Promise<Float32Array> {
  const bias = sharedFloats(matrix.outFeatures)
  let row = 0
  for (const part of matrix.parts) {
    if (part.bias !== undefined) {
      bias.set(await source.readTensor(part.bias), row)
    }
    row += part.outFeatures
  }
  return multiplyInPlace(bias, matrix.multiplier)
}

async function addNorm(source: WeightSource, { name, spec, size }: NormPlan, add: AddFloats): Promise<void> {
  const weight = sharedFloats(size)
  weight.set(await source.readTensor(spec.weight))
  add(`${name}.weight`, [size], spec.addOne ? weight.map((value) => value + 1) : weight)
  if (spec.bias !== undefined) {
    add(`${name}.bias`, [size], await source.readTensor(spec.bias))
  }
}

/** The table for long sequences follows that for short ones. */
function addRope(name: string, { rotaryDim, positions, cos, sin, long }: RopeTable, add: AddFloats): void {
  const half = rotaryDim / 2
  const rows = positions * (long === undefined ? 1 : 2)
  const join = (short: Float32Array, more: Float32Array | undefined): Float32Array => {
    const table = sharedFloats(rows * half)
    table.set(short)
    table.set(more ?? [], more === undefined ? 0 : positions * half)
    return table
  }
  add(`${name}.cos`, [rows, half], join(cos, long?.cos))
  add(`${name}.sin`, [rows, half], join(sin, long?.sin))
}

function transpose(stored: Float32Array, rows: number, columns: number): Float32Array {
  const result = new Float32Array(stored.length)
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      result[c * rows + r] = stored[r * columns + c]!
    }
  }
  return result
}

function multiplyInPlace(values: Float32Array, factor: number): Float32Array {
  for (let i = 0; i < values.length; i++) {
    values[i]! *= factor
  }
  return values
}

function sharedFloats(length: number): Float32Array {
  return new Float32Array(new SharedArrayBuffer(length * 4))
}
