/** The architectures that are served. */

import { ModelError } from '../model-error.ts'
import type { Family } from './family.ts'
import { llama } from './llama.ts'

const FAMILIES: Family[] = [llama]

/** By the class that config.json names; by `model_type` where it names none. */
export function familyOf(config: Record<string, unknown>): Family {
  const { architectures, model_type: modelType } = config
  const named: unknown = Array.isArray(architectures) ? architectures[0] : undefined
  const family = FAMILIES.find((it) => (named === undefined ? it.modelType === modelType : it.architecture === named))
  if (family === undefined) {
    const known = FAMILIES.map((it) => it.architecture).join(', ')
    const given = String(named ?? modelType ?? 'none').slice(0, 100)
    throw new ModelError(`config.json names the architecture ${given}; served: ${known}`)
  }
  return family
}
