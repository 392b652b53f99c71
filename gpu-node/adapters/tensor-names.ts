/** Tensor names in adapter files → which module and which part of it. Reads every spelling that PEFT has written. */

import type { BaseModule } from '../model/model-spec.ts'

export type TensorPart =
  | 'loraA'
  | 'loraB'
  | 'loraBias'
  | 'magnitude'
  | 'embeddingA'
  | 'embeddingB'
  /** The base module's own tensors, which PEFT stores beside LoRA on an embedding or a head. */
  | 'baseWeight'
  | 'baseBias'
  /** A module replaced as a whole, or a bias trained along. */
  | 'weight'
  | 'bias'

export interface TensorName {
  /** Path of the module without PEFT's and wrappers' prefixes. */
  module: string
  part: TensorPart
  /** The adapter's name inside a file that kept it, as in `lora_A.default.weight`. */
  infix: string | undefined
}

const FORMS: [RegExp, TensorPart][] = [
  [/^(.+)\.lora_A(?:\.([^.]+))?\.weight$/, 'loraA'],
  [/^(.+)\.lora_B(?:\.([^.]+))?\.weight$/, 'loraB'],
  [/^(.+)\.lora_B(?:\.([^.]+))?\.bias$/, 'loraBias'],
  [/^(.+)\.lora_magnitude_vector(?:\.(?!weight$)([^.]+))?(?:\.weight)?$/, 'magnitude'],
  [/^(.+)\.lora_embedding_A(?:\.([^.]+))?$/, 'embeddingA'],
  [/^(.+)\.lora_embedding_B(?:\.([^.]+))?$/, 'embeddingB'],
  [/^(.+)\.base_layer\.weight$/, 'baseWeight'],
  [/^(.+)\.base_layer\.bias$/, 'baseBias'],
  [/^(.+)\.modules_to_save(?:\.([^.]+))?\.weight$/, 'weight'],
  [/^(.+)\.modules_to_save(?:\.([^.]+))?\.bias$/, 'bias'],
  [/^(.+)\.weight$/, 'weight'],
  [/^(.+)\.bias$/, 'bias'],
]

/** `undefined`: no form that PEFT writes for LoRA. */
export function parseTensorName(name: string): TensorName | undefined {
  for (const [form, part] of FORMS) {
    const match = form.exec(name)
    if (match !== null) {
      return { module: stripPrefixes(match[1]!), part, infix: match[2] }
    }
  }
  return undefined
}

/**
 * The base's own name for `module`: as it stands, or without the `language_model` level that multimodal checkpoints of the
 * same decoder have around it.
 */
export function toBaseModule(module: string, modules: ReadonlyMap<string, BaseModule>): string | undefined {
  if (modules.has(module)) {
    return module
  }
  const text = module.replace(/(^|\.)language_model\./, '$1')
  return [text, `model.${text}`].find((name) => text !== module && modules.has(name))
}

/**
 * How the file would spell a module of the base: PEFT matches a config's patterns with these names. `found`: the file's own
 * spelling by the base's name; modules that it lacks are spelled like the first one that it has.
 */
export function fileSpelling(found: ReadonlyMap<string, string>): (module: string) => string {
  const [sample] = found
  if (sample === undefined) {
    return (module) => module
  }
  const [ours, theirs] = sample.map((name) => name.split('.')) as [string[], string[]]
  while (ours.length > 0 && ours.at(-1) === theirs.at(-1)) {
    ours.pop()
    theirs.pop()
  }
  const [from, to] = [ours, theirs].map((level) => level.map((name) => `${name}.`).join('')) as [string, string]
  return (module) => found.get(module) ?? (module.startsWith(from) ? to + module.slice(from.length) : module)
}

/** `base_model.model.` is PEFT's; the others are left by FSDP and torch.compile. */
function stripPrefixes(module: string): string {
  const bare = module.replace(/(^|\.)(?:_fsdp_wrapped_module|_orig_mod)(?=\.)/g, '').replace(/^\./, '')
  return bare.startsWith('base_model.model.') ? bare.slice('base_model.model.'.length) : bare
}
