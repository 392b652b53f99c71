/** The architectures that are served. */

import { ModelError } from '../model-error.ts'
import type { Family } from './family.ts'
import { gemma2 } from './gemma2.ts'
import { gemma3 } from './gemma3.ts'
import { gpt2 } from './gpt2.ts'
import { granite } from './granite.ts'
import { llama } from './llama.ts'
import { mistral } from './mistral.ts'
import { mixtral } from './mixtral.ts'
import { olmo2 } from './olmo2.ts'
import { phi3 } from './phi3.ts'
import { qwen2 } from './qwen2.ts'
import { qwen3 } from './qwen3.ts'
import { qwen3Moe } from './qwen3-moe.ts'
import { smollm3 } from './smollm3.ts'
import { starcoder2 } from './starcoder2.ts'

const FAMILIES: Family[] = [
  ...[llama, mistral, qwen2, qwen3, gemma2, gemma3, phi3, gpt2],
  ...[granite, smollm3, starcoder2, olmo2, mixtral, qwen3Moe],
]

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
