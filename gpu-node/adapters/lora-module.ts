/** The tensors of one module → its factors, with shapes checked against the base and the config, and values against NaN. */

import type { BaseModule } from '../model/model-spec.ts'
import type { LoraModule, SavedModule } from '../model/packed-adapter.ts'
import type { PeftConfig } from './adapter-config.ts'
import type { LoadReport } from './load-report.ts'
import { type Allocate, type RawTensor, sharedFloats, toFloat32 } from './raw-tensor.ts'
import type { TensorPart } from './tensor-names.ts'

export type ModuleTensors = ReadonlyMap<TensorPart, RawTensor>

/** What all modules of an adapter are built with. */
export interface BuildContext {
  config: PeftConfig
  report: LoadReport
  allocate: Allocate
}

/** `undefined` after a problem was put into the report. */
export function buildLoraModule(
  base: BaseModule,
  tensors: ModuleTensors,
  { rank, scaling }: { rank: number; scaling: number },
  context: BuildContext,
): LoraModule | undefined {
  const { name } = base
  const { config, report } = context
  const before = report.problems.length
  const embedding = base.kind === 'embedding'
  const expected = embedding ? (['embeddingA', 'embeddingB'] as const) : (['loraA', 'loraB'] as const)
  const wrongKind = embedding ? (['loraA', 'loraB'] as const) : (['embeddingA', 'embeddingB'] as const)
  for (const part of wrongKind.filter((part) => tensors.has(part))) {
    report.problems.push(`${name} is ${embedding ? 'an embedding' : 'a linear module'} in the base, but has ${part}`)
  }
  if (!Number.isFinite(scaling)) {
    report.problems.push(`${name} has the scaling ${scaling}`)
  }
  const a = read(name, tensors, expected[0], [rank, base.inFeatures], context)
  const b = read(name, tensors, expected[1], [base.outFeatures, rank], context)
  const tooLarge = b === undefined || !Number.isFinite(scaling) ? undefined : firstNotFinite(b, scaling)
  if (tooLarge !== undefined) {
    const values = `${b![tooLarge]} at element ${tooLarge} times the scaling ${scaling}`
    report.problems.push(`${name} ${expected[1]} has ${values}: beyond single precision`)
  }
  const bias = optional(name, tensors, 'loraBias', base, config.lora_bias, 'lora_bias', context)
  const magnitude = optional(name, tensors, 'magnitude', base, config.use_dora, 'use_dora', context)
  if (embedding && (bias || magnitude)) {
    report.problems.push(`${name} is an embedding with ${bias ? 'lora_bias' : 'DoRA'}; it is not applied`)
  }
  if (a === undefined || b === undefined || report.problems.length > before) {
    return undefined
  }
  report.modules.push({
    name,
    rank,
    scaling,
    dtype: tensors.get(expected[0])!.dtype,
    zero: magnitude === undefined && isZero(bias) && (isZero(a) || isZero(b, scaling)),
  })
  return {
    name,
    rank,
    loraA: a,
    loraB: b,
    scaling,
    ...(bias === undefined ? {} : { loraBias: bias }),
    ...(magnitude === undefined ? {} : { magnitude }),
  }
}

/** `modules_to_save`, and biases trained along (`bias: all | lora_only`), which are refused by name. */
export function buildSavedModule(
  base: BaseModule,
  tensors: ModuleTensors,
  context: BuildContext,
): SavedModule | undefined {
  const { name } = base
  const { config, report } = context
  const before = report.problems.length
  if (!tensors.has('weight')) {
    report.problems.push(`${name} has a bias trained along (bias is '${config.bias}'); it is not applied`)
    return undefined
  }
  if (tensors.has('loraA') || tensors.has('embeddingA')) {
    report.problems.push(`${name} is both adapted and replaced as a whole`)
    return undefined
  }
  const inFirst = base.kind === 'embedding' || base.transposed
  const shape = inFirst ? [base.inFeatures, base.outFeatures] : [base.outFeatures, base.inFeatures]
  const stored = read(name, tensors, 'weight', shape, context)
  const bias = tensors.has('bias') ? read(name, tensors, 'bias', [base.outFeatures], context) : undefined
  if (stored === undefined || report.problems.length > before) {
    return undefined
  }
  const weight = base.transposed ? transpose(stored, base.inFeatures, base.outFeatures) : stored
  return { name, weight, ...(bias === undefined ? {} : { bias }) }
}

/** A part that belongs to a feature of the config: both are there, or neither. */
function optional(
  name: string,
  tensors: ModuleTensors,
  part: 'loraBias' | 'magnitude',
  base: BaseModule,
  wanted: boolean,
  field: string,
  context: BuildContext,
): Float32Array | undefined {
  const { report } = context
  if (wanted !== tensors.has(part)) {
    // PEFT gives every module a magnitude with DoRA; embeddings never have a bias of lora_B.
    report.problems.push(
      wanted
        ? `${name} has no ${part}, but the config says ${field}`
        : `${name} has a ${part}, but the config does not say ${field}`,
    )
    return undefined
  }
  return wanted ? read(name, tensors, part, [base.outFeatures], context) : undefined
}

function read(
  module: string,
  tensors: ModuleTensors,
  part: TensorPart,
  shape: number[],
  { report, allocate }: BuildContext,
): Float32Array | undefined {
  const tensor = tensors.get(part)
  if (tensor === undefined) {
    report.problems.push(`${module} has no ${part}`)
    return undefined
  }
  if (!sameShape(tensor.shape, shape)) {
    report.problems.push(`${module} ${part} is [${tensor.shape}]; the base and the config need [${shape}]`)
    return undefined
  }
  const values = toFloat32(tensor, allocate)
  const bad = firstNotFinite(values)
  if (bad !== undefined) {
    report.problems.push(`${module} ${part} has ${values[bad]} at element ${bad}`)
    return undefined
  }
  return values
}

/** DoRA's magnitude was once stored as `[1, out]`; the numbers are the same. */
function sameShape(given: readonly number[], wanted: readonly number[]): boolean {
  const compact = wanted.length === 1 ? given.filter((size, i) => size !== 1 || i === given.length - 1) : given
  return compact.length === wanted.length && compact.every((size, i) => size === wanted[i])
}

/**
 * Of the values times `factor` in single precision. x − x is 0 for every finite x and NaN otherwise, so one sum tells whether a
 * search is needed.
 */
export function firstNotFinite(values: Float32Array, factor = 1): number | undefined {
  let sum = 0
  for (let i = 0; i < values.length; i++) {
    const value = Math.fround(values[i]! * factor)
    sum += value - value
  }
  if (sum === 0) {
    return undefined
  }
  return values.findIndex((value) => !Number.isFinite(Math.fround(value * factor)))
}

/** Of the values times `factor` in single precision. */
function isZero(values: Float32Array | undefined, factor = 1): boolean {
  return values === undefined || values.every((value) => Math.fround(value * factor) === 0)
}

/** `[rows, columns]` → `[columns, rows]`. */
function transpose(values: Float32Array, rows: number, columns: number): Float32Array {
  const out = sharedFloats(values.length)
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      out[column * rows + row] = values[row * columns + column]!
    }
  }
  return out
}
