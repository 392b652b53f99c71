/** adapter_config.json by an allow-list: what is applied, what has no effect at inference, and what is refused by name. */

import { z } from 'zod'

/** Largest adapter_config.json: the longest known (every module listed by its full path) have some hundred KB. */
export const MAX_CONFIG_BYTES = 4 * 1024 * 1024
/** No published adapter comes near; bounds every product of a rank with a dimension. */
export const MAX_RANK = 8192

const names = z.array(z.string().min(1).max(1024)).max(100_000)
/** One regular expression, or names. */
const pattern = z.union([z.string().min(1).max(20_000), names])
const patternOf = (value: z.ZodNumber) =>
  z
    .record(z.string().min(1).max(20_000), value)
    .nullish()
    .transform((given) => new Map(Object.entries(given ?? {})))
const rank = z.number().int().min(1).max(MAX_RANK)
const layerIndex = z.number().int().nonnegative()
const flag = z
  .boolean()
  .nullish()
  .transform((given) => given ?? false)

const appliedSchema = z.object({
  peft_type: z.literal('LORA'),
  base_model_name_or_path: z.string().nullish(),
  r: rank.default(8),
  lora_alpha: z.number().default(8),
  use_rslora: flag,
  use_dora: flag,
  lora_bias: flag,
  bias: z.enum(['none', 'all', 'lora_only']).default('none'),
  fan_in_fan_out: flag,
  ensure_weight_tying: flag,
  rank_pattern: patternOf(rank),
  alpha_pattern: patternOf(z.number()),
  target_modules: pattern.nullish(),
  exclude_modules: pattern.nullish(),
  modules_to_save: names.nullish().transform((given) => given ?? []),
  layers_to_transform: z.union([layerIndex, z.array(layerIndex).max(100_000)]).nullish(),
  layers_pattern: z.union([z.string(), names]).nullish(),
})

/** LoRA as adapter_config.json describes it, under PEFT's names. */
export type PeftConfig = z.infer<typeof appliedSchema>

/** They say how training went or which version wrote the file; the forward pass does not know them. */
const WITHOUT_EFFECT = new Set([
  'auto_mapping',
  'eva_config',
  'inference_mode',
  'lora_dropout',
  'loftq_config',
  'megatron_core',
  'merge_weights',
  'peft_version',
  'qalora_group_size',
  'revision',
  'runtime_config',
  'task_type',
])

/** Ways of starting training that leave the base's weights as they are. The others subtract something from them. */
const HARMLESS_INITS = new Set(['gaussian', 'eva', 'orthogonal', 'true', 'false'])

/** Features that change what the adapter computes and that Ringlet does not apply. */
const NOT_APPLIED: Record<string, string> = {
  alora_invocation_tokens: 'activated LoRA (it starts at its invocation tokens)',
  arrow_config: 'Arrow routing between adapters',
  corda_config: 'CorDA changes the base weights',
  enable_lora: 'LoRA on some of the outputs of a fused module',
  kasa_config: 'KaSA',
  layer_replication: 'replicated layers',
  lora_ga_config: 'LoRA-GA changes the base weights',
  megatron_config: 'Megatron layers',
  monteclora_config: 'MonteCLoRA',
  target_parameters: 'LoRA on bare parameters (fused experts)',
  trainable_token_indices: 'single trained rows of the embedding',
  use_bdlora: 'block-diagonal LoRA',
  use_qalora: 'QA-LoRA',
  velora_config: 'VeLoRA',
}

export interface ConfigReading {
  /** Absent where a field that is applied is malformed. */
  config: PeftConfig | undefined
  problems: string[]
  warnings: string[]
}

export function parseAdapterConfig(text: string): ConfigReading {
  const problems: string[] = []
  const warnings: string[] = []
  const object = toObject(text)
  if (object === undefined) {
    return { config: undefined, problems: ['adapter_config.json is no JSON object'], warnings }
  }
  if (object.peft_type !== 'LORA') {
    problems.push(`peft_type is ${show(object.peft_type)}; only LORA adapters are served`)
    return { config: undefined, problems, warnings }
  }
  const parsed = appliedSchema.safeParse(object)
  for (const issue of parsed.error?.issues ?? []) {
    problems.push(`adapter_config.json: ${issue.path.join('.')}: ${issue.message}`)
  }
  for (const [field, value] of Object.entries(object)) {
    checkField(field, value, problems, warnings)
  }
  if (parsed.success && parsed.data.lora_bias && parsed.data.use_dora) {
    problems.push('lora_bias and use_dora exclude each other in PEFT')
  }
  return { config: parsed.data, problems, warnings }
}

function checkField(field: string, value: unknown, problems: string[], warnings: string[]): void {
  if (Object.hasOwn(appliedSchema.shape, field) || WITHOUT_EFFECT.has(field)) {
    return
  }
  if (field === 'init_lora_weights') {
    const init = String(value).toLowerCase()
    if (value !== null && !HARMLESS_INITS.has(init)) {
      problems.push(
        `init_lora_weights is ${show(value)}: this adapter belongs to changed base weights; ` +
          `save it with PEFT's path_initial_model_for_weight_conversion`,
      )
    }
    return
  }
  if (isEmpty(value)) {
    if (!Object.hasOwn(NOT_APPLIED, field)) {
      warnings.push(`adapter_config.json: the unknown field ${show(field)} is empty and was passed over`)
    }
    return
  }
  const feature = Object.hasOwn(NOT_APPLIED, field) ? NOT_APPLIED[field] : 'unknown here'
  problems.push(`adapter_config.json: ${show(field)} is ${show(value)}: ${feature}; it is not applied`)
}

function toObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : undefined
  } catch {
    return undefined
  }
}

/** null, false, [] and {} are how PEFT writes "not used". */
function isEmpty(value: unknown): boolean {
  return value === null || value === false || (typeof value === 'object' && Object.keys(value).length === 0)
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? 'absent'
  return text.slice(0, 80).replace(/[^\x20-\x7e]/g, '?')
}
