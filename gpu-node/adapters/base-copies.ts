/**
 * PEFT stores the base's own embedding or head beside LoRA on it. A copy equal to the base's weights says nothing; one that
 * differs is a retrained module, which would be lost if it were passed over.
 */

import type { BaseModule, ModelSpec } from '../model/model-spec.ts'
import type { LoadReport } from './load-report.ts'
import type { ModuleTensors } from './lora-module.ts'
import { allocateShared, type RawTensor, toFloat32 } from './raw-tensor.ts'

/** A module's weight (row-major, as the checkpoint stores it) or bias in float32; `undefined` where the base has none. */
export type BaseWeights = (module: string, part: 'weight' | 'bias') => Promise<Float32Array | undefined>

/** Half a unit in the last place, relative, of what each dtype keeps: a copy may be the base's weights rounded to it. */
const ROUNDING: Record<RawTensor['dtype'], number> = {
  F64: 0,
  F32: 2 ** -24,
  F16: 2 ** -11,
  BF16: 2 ** -8,
  F8_E4M3: 2 ** -4,
  F8_E5M2: 2 ** -3,
}

export async function checkBaseCopies(
  grouped: ReadonlyMap<string, ModuleTensors>,
  spec: Pick<ModelSpec, 'modules'>,
  baseWeights: BaseWeights | undefined,
  report: LoadReport,
): Promise<void> {
  for (const [name, tensors] of grouped) {
    for (const [part, own] of [['baseWeight', 'weight'] as const, ['baseBias', 'bias'] as const]) {
      const copy = tensors.get(part)
      if (copy !== undefined) {
        const problem = await compare(spec.modules.get(name)!, copy, own, baseWeights)
        report.problems.push(...(problem === undefined ? [] : [problem]))
      }
    }
  }
}

async function compare(
  base: BaseModule,
  copy: RawTensor,
  part: 'weight' | 'bias',
  baseWeights: BaseWeights | undefined,
): Promise<string | undefined> {
  const what = `the file's copy of the base's ${base.name} ${part}`
  if (baseWeights === undefined) {
    return `${what} can't be compared: the base's weights are not at hand`
  }
  const original = await baseWeights(base.name, part)
  const values = toFloat32(copy, allocateShared)
  if (original === undefined || original.length !== values.length) {
    return `${what} is [${copy.shape}]; the base has ${original?.length ?? 0} elements there`
  }
  const tolerance = ROUNDING[copy.dtype]
  // Subnormal halves lose more than a relative half unit; 2^-25 is their step's half.
  const differing = values.findIndex(
    (value, i) => !(Math.abs(value - original[i]!) <= tolerance * Math.abs(original[i]!) + 2 ** -25),
  )
  if (differing >= 0) {
    return (
      `${what} differs from the base (element ${differing}: ${values[differing]} and ${original[differing]}): ` +
      'a retrained module beside LoRA on it is not applied'
    )
  }
  return undefined
}
