/** Opens a Hugging Face checkpoint directory: what the model is (config.json), and its weights, read one tensor at a time. */

import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { ConfigFields } from './config-fields.ts'
import type { DecoderSpec } from './decoder-spec.ts'
import { decoderModules, decoderTensors } from './decoder-tensors.ts'
import { familyOf } from './families/registry.ts'
import { kernelObjection } from './kernel-limits.ts'
import { ModelError } from './model-error.ts'
import type { ModelSpec } from './model-spec.ts'
import { product } from './tensor-candidates.ts'
import { openWeightFiles, type StoredNumbers, type WeightFiles } from './weight-files.ts'

export interface CheckpointOptions {
  /** Most positions to serve; the model's own maximum may be lower. Rotary tables have this many rows. */
  maxPositions?: number
}

export interface Checkpoint {
  readonly directory: string
  readonly spec: ModelSpec
  readonly decoder: DecoderSpec
  /** Widened to float32, in the checkpoint's own layout; `name` is one of the decoder's tensors. */
  readTensor(name: string, out?: Float32Array): Promise<Float32Array>
  /** `out.length` numbers of a tensor from its element `first` on, widened to float32. */
  readPart(name: string, first: number, out: Float32Array): Promise<Float32Array>
  /** The tensor as stored, if that is bfloat16. */
  readBfloat16(name: string): Promise<Uint16Array | undefined>
  /** Where its numbers lie, for other threads to read; valid until `close`. */
  stored(name: string): StoredNumbers
  shape(name: string): readonly number[]
  /** Sizes and times of the weight files: changes whenever they do. */
  readonly stamp: string
  close(): Promise<void>
}

/** Nothing is read of the weights but their headers; every tensor that the decoder needs is known to be there. */
export async function openCheckpoint(directory: string, options: CheckpointOptions = {}): Promise<Checkpoint> {
  const text = await readText(join(directory, 'config.json'))
  const config = parseJsonObject(text, 'config.json')
  const family = familyOf(config)
  const warnings: string[] = []
  const fields = new ConfigFields(config, family.defaults)
  const described = family.decoder(fields, {
    maxPositions: options.maxPositions ?? Number.POSITIVE_INFINITY,
    warn: (warning) => warnings.push(warning),
  })
  const unknown = fields.finish()
  if (unknown.length > 0) {
    warnings.push(`config.json has fields that nothing here reads: ${unknown.join(', ')}`)
  }
  const objection = kernelObjection(described)
  if (objection !== undefined) {
    throw new ModelError(`${join(directory, 'config.json')}: ${objection}`)
  }
  const files = await openWeightFiles(directory, decoderTensors(described), expertsOf(described))
  try {
    const decoder = await untieDifferentHead(described, files, warnings)
    const tensors = decoderTensors(decoder)
    warnings.push(...unusedWarning(files.unused().filter((name) => !tensors.has(name) && name !== ownHead(decoder))))
    const shape = (name: string) => {
      const size = tensors.get(name)
      if (size === undefined) {
        throw new ModelError(`the model has no tensor '${name}'`)
      }
      return size
    }
    return {
      directory,
      decoder,
      spec: {
        family: family.modelType,
        architecture: family.architecture,
        hiddenSize: decoder.hiddenSize,
        layers: decoder.layers.length,
        heads: decoder.heads,
        kvHeads: decoder.kvHeads,
        headSize: decoder.headSize,
        vocabSize: decoder.vocabSize,
        maxPositions: decoder.maxPositions,
        tiedHead: decoder.head.tied,
        modules: decoderModules(decoder),
        bosToken: firstToken(config.bos_token_id),
        eosTokens: await readEosTokens(directory, config),
        baseDigest: digest(text, files),
        warnings,
      },
      shape,
      stamp: files.stamp,
      readTensor: async (name, out) => {
        const target = out ?? new Float32Array(product(shape(name)))
        if (target.length !== product(shape(name))) {
          throw new ModelError(`'${name}' has ${product(shape(name))} numbers; the place for it has ${target.length}`)
        }
        return files.readPart(name, 0, target)
      },
      readPart: async (name, first, out) => {
        if (first + out.length > product(shape(name))) {
          throw new ModelError(
            `'${name}' has ${product(shape(name))} numbers; asked: ${first} to ${first + out.length}`,
          )
        }
        return files.readPart(name, first, out)
      },
      readBfloat16: async (name) => {
        shape(name)
        return files.readBfloat16(name)
      },
      stored: (name) => {
        shape(name)
        return files.stored(name)
      },
      close: () => files.close(),
    }
  } catch (error) {
    await files.close()
    throw error
  }
}

/** As transformers 5: a head that is stored apart from the embedding it should be tied to, and differs, is used as stored. */
async function untieDifferentHead(spec: DecoderSpec, files: WeightFiles, warnings: string[]): Promise<DecoderSpec> {
  const own = ownHead(spec)
  if (!spec.head.tied || !files.has(own) || (await files.equal(own, spec.embedding.weight))) {
    return spec
  }
  warnings.push(
    `config.json ties '${own}' to '${spec.embedding.weight}', but the files have both and they differ: not tied`,
  )
  return { ...spec, head: { ...spec.head, weight: own, tied: false } }
}

/** Its tensor, were it not tied. */
function ownHead(spec: DecoderSpec): string {
  return `${spec.head.module}.weight`
}

function expertsOf(spec: DecoderSpec): number | undefined {
  const counts = spec.layers.map(({ mlp }) => (mlp.kind === 'moe' ? mlp.experts.length : undefined))
  return counts.find((count) => count !== undefined)
}

const NAMED = 5

function unusedWarning(names: string[]): string[] {
  const more = names.length > NAMED ? ', …' : ''
  const some = `${names.slice(0, NAMED).join(', ')}${more}`
  return names.length === 0
    ? []
    : [`the weight files have ${names.length} tensors that the model does not use: ${some}`]
}

function digest(config: string, files: WeightFiles): string {
  const hash = createHash('sha256')
  hash.update(`${Buffer.byteLength(config)}\n`).update(config)
  files.addTo(hash)
  return hash.digest('hex')
}

/** Generation's own file wins, as in transformers. */
async function readEosTokens(directory: string, config: Record<string, unknown>): Promise<number[]> {
  const text = await readText(join(directory, 'generation_config.json'), { optional: true })
  const generation = text === '' ? {} : parseJsonObject(text, 'generation_config.json')
  return tokens(generation.eos_token_id ?? config.eos_token_id)
}

function firstToken(value: unknown): number | undefined {
  return tokens(value)[0]
}

function tokens(value: unknown): number[] {
  const list: unknown[] = Array.isArray(value) ? value : [value]
  return list.filter((id): id is number => Number.isInteger(id) && Number(id) >= 0)
}

async function readText(path: string, { optional = false } = {}): Promise<string> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if (optional && (error as NodeJS.ErrnoException).code === 'ENOENT') {
      return ''
    }
    throw new ModelError(`cannot read ${path}: ${(error as NodeJS.ErrnoException).code}`, { cause: error })
  }
}

export function parseJsonObject(text: string, name: string): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new ModelError(`${name} is no JSON text`, { cause })
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ModelError(`${name} is no JSON object`)
  }
  return value as Record<string, unknown>
}
