/** Reads a checkpoint's tokenizer files, and settles what tokenizer_config.json overrides as transformers does. */

import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'

/** Contents as in tokenizer.json's `added_tokens`. */
const addedTokenSchema = z.looseObject({
  id: z.int().nonnegative(),
  content: z.string(),
  special: z.boolean().default(false),
})

/** Only what this folder reads; the library checks the rest. */
const tokenizerSchema = z.looseObject({
  added_tokens: z.array(addedTokenSchema).default([]),
  decoder: z.looseObject({ type: z.string() }).nullable().default(null),
  post_processor: z.looseObject({ type: z.string() }).nullable().default(null),
  normalizer: z.unknown().default(null),
  pre_tokenizer: z.unknown().default(null),
  model: z.looseObject({ type: z.string().optional() }),
})
export type TokenizerJson = z.infer<typeof tokenizerSchema>

/** A token by its text, or with the options of an added token. */
const tokenTextSchema = z
  .union([z.string(), z.looseObject({ content: z.string() })])
  .transform((token) => (typeof token === 'string' ? token : token.content))

const namedTemplates = z.array(z.looseObject({ name: z.string(), template: z.string() }))

const configSchema = z.looseObject({
  bos_token: tokenTextSchema.nullish(),
  eos_token: tokenTextSchema.nullish(),
  unk_token: tokenTextSchema.nullish(),
  pad_token: tokenTextSchema.nullish(),
  add_bos_token: z.boolean().nullish(),
  add_eos_token: z.boolean().nullish(),
  additional_special_tokens: z.array(tokenTextSchema).nullish(),
  extra_special_tokens: z.union([z.array(tokenTextSchema), z.record(z.string(), tokenTextSchema)]).nullish(),
  added_tokens_decoder: z
    .record(z.string(), z.looseObject({ content: z.string(), special: z.boolean().default(false) }))
    .nullish(),
  chat_template: z.union([z.string(), namedTemplates]).nullish(),
})
export type TokenizerConfig = z.infer<typeof configSchema>

export interface TokenizerFiles {
  tokenizer: TokenizerJson
  config: TokenizerConfig
  /** Sources by name; `default` is the usual one. Empty: the model has no chat template. */
  chatTemplates: ReadonlyMap<string, string>
  /** Of what the tokenizer was made from: files read again later may have changed. */
  digest: string
}

/** `directory` is a Hugging Face checkpoint directory. Throws plain errors: the operator's files are at fault. */
export async function readTokenizerFiles(directory: string): Promise<TokenizerFiles> {
  const tokenizerText = await readText(directory, 'tokenizer.json')
  const tokenizer = parseJson(tokenizerText, 'tokenizer.json', tokenizerSchema)
  const configText = (await readOptional(directory, 'tokenizer_config.json')) ?? '{}'
  const config = parseJson(configText, 'tokenizer_config.json', configSchema)
  const templateFile = (await readOptional(directory, 'chat_template.jinja')) ?? (await readJsonTemplate(directory))
  addDeclaredTokens(tokenizer, config)
  applyExplicitBos(tokenizer, config)
  const digest = createHash('sha256').update(tokenizerText).update(configText).digest('hex')
  return { tokenizer, config, chatTemplates: collectTemplates(templateFile, config), digest }
}

/** chat_template.json: `{"chat_template": "…"}`, as processors have it. */
async function readJsonTemplate(directory: string): Promise<string | undefined> {
  const name = 'chat_template.json'
  const text = await readOptional(directory, name)
  return text === undefined ? undefined : parseJson(text, name, z.object({ chat_template: z.string() })).chat_template
}

/** A chat_template.jinja file wins over the field, as in transformers. */
function collectTemplates(file: string | undefined, config: TokenizerConfig): Map<string, string> {
  const given = config.chat_template
  const templates = new Map<string, string>()
  if (typeof given === 'string') {
    templates.set('default', given)
  } else {
    for (const entry of given ?? []) {
      templates.set(entry.name, entry.template)
    }
  }
  if (file !== undefined) {
    templates.set('default', file)
  }
  return templates
}

/** Tokens that only tokenizer_config.json declares; transformers adds them when it loads. */
function addDeclaredTokens(tokenizer: TokenizerJson, config: TokenizerConfig): void {
  const known = new Set(tokenizer.added_tokens.map((token) => token.id))
  for (const [id, token] of Object.entries(config.added_tokens_decoder ?? {})) {
    if (!known.has(Number(id))) {
      tokenizer.added_tokens.push({ ...token, id: Number(id) })
    }
  }
}

/** An explicit `add_bos_token` or `add_eos_token` replaces tokenizer.json's post-processor (transformers 5). */
function applyExplicitBos(tokenizer: TokenizerJson, config: TokenizerConfig): void {
  if (config.add_bos_token == null && config.add_eos_token == null) {
    return
  }
  const special = (text: string | null | undefined, wanted: boolean | null | undefined) =>
    wanted === true && text != null ? [{ SpecialToken: { id: text, type_id: 0 } }] : []
  const single = [
    ...special(config.bos_token, config.add_bos_token),
    { Sequence: { id: 'A', type_id: 0 } },
    ...special(config.eos_token, config.add_eos_token),
  ]
  tokenizer.post_processor = { type: 'TemplateProcessing', single, pair: single, special_tokens: {} }
}

/** Texts of all special tokens, wherever they are declared. */
export function specialTexts(files: Pick<TokenizerFiles, 'tokenizer' | 'config'>): Set<string> {
  const { config, tokenizer } = files
  const extra = config.extra_special_tokens ?? []
  return new Set([
    ...tokenizer.added_tokens.filter((token) => token.special).map((token) => token.content),
    ...[config.bos_token, config.eos_token, config.unk_token, config.pad_token].filter((text) => text != null),
    ...(config.additional_special_tokens ?? []),
    ...(Array.isArray(extra) ? extra : Object.values(extra)),
  ])
}

function parseJson<Schema extends z.ZodType>(text: string, name: string, schema: Schema): z.output<Schema> {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new Error(`${name} is not JSON`, { cause })
  }
  const result = schema.safeParse(value)
  if (!result.success) {
    throw new Error(`${name}: ${z.prettifyError(result.error).split('\n').slice(0, 2).join(' ')}`)
  }
  return result.data
}

async function readText(directory: string, name: string): Promise<string> {
  const text = await readOptional(directory, name)
  if (text === undefined) {
    throw new Error(`${join(directory, name)} does not exist`)
  }
  return text
}

async function readOptional(directory: string, name: string): Promise<string | undefined> {
  try {
    return await readFile(join(directory, name), 'utf8')
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') {
      return undefined
    }
    throw error
  }
}
