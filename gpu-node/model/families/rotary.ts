/** The rotary tables of a family: one for all layers, or one each for layers with and without a window. */

import type { ConfigFields } from '../config-fields.ts'
import type { RopeTable } from '../decoder-spec.ts'
import { ropeTable } from '../rope.ts'
import { type RopeDefaults, type RopeParameters, readRope, readRopeByLayerType } from '../rope-parameters.ts'
import type { DecoderShape, FamilyLimits } from './family.ts'

export function readRopeTable(
  config: ConfigFields,
  shape: DecoderShape,
  limits: FamilyLimits,
  defaults: Omit<RopeDefaults, 'modelPositions'>,
): RopeTable {
  const parameters = readRope(config, { ...defaults, modelPositions: shape.modelPositions })
  return tableOf(parameters, shape, limits)
}

/** `[full, sliding]`. */
export function readRopeTables(
  config: ConfigFields,
  shape: DecoderShape,
  limits: FamilyLimits,
  defaults: { fullTheta: number; slidingTheta: number },
): RopeTable[] {
  const { full, sliding } = readRopeByLayerType(config, { ...defaults, modelPositions: shape.modelPositions })
  return [tableOf(full, shape, limits), tableOf(sliding, shape, limits)]
}

function tableOf(parameters: RopeParameters, shape: DecoderShape, limits: FamilyLimits): RopeTable {
  const { headSize, modelPositions, positions } = shape
  if (parameters.type === 'dynamic') {
    const factor = `rope type 'dynamic' (factor ${parameters.factor})`
    limits.warn(`${factor} turns earlier tokens anew beyond ${modelPositions} positions: only that many are served`)
  }
  return ropeTable({ parameters, headSize, modelPositions, positions })
}
