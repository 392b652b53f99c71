/** The one rotary table of families whose layers all turn alike. */

import type { ConfigFields } from '../config-fields.ts'
import type { RopeTable } from '../decoder-spec.ts'
import { ropeTable } from '../rope.ts'
import { type RopeDefaults, readRope } from '../rope-parameters.ts'
import type { DecoderShape, FamilyLimits } from './family.ts'

export function readRopeTable(
  config: ConfigFields,
  shape: DecoderShape,
  limits: FamilyLimits,
  defaults: Omit<RopeDefaults, 'modelPositions'>,
): RopeTable {
  const { headSize, modelPositions, positions } = shape
  const parameters = readRope(config, { ...defaults, modelPositions })
  if (parameters.type === 'dynamic') {
    limits.warn(
      `rope type 'dynamic' changes the embedding of earlier tokens beyond ${modelPositions} positions; up to there it is served`,
    )
  }
  return ropeTable({ parameters, headSize, modelPositions, positions })
}
