/** Opens a Hugging Face checkpoint directory: what the model is (config.json), and its weights, read one tensor at a time. */

import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { ConfigFields } from './config-fields.ts'
import type { DecoderSpec } from './decoder-spec.ts'
import { decoderModules, decoderTensors } from './decoder-tensors.ts'
import { familyOf } from './families/registry.ts'
import { ModelError } from './model-error.ts'
import type { ModelSpec } from './model-spec.ts'
import { openWeightFiles, type WeightFiles } from './weight-files.ts'

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
  shape(name: string): readonly number[]
  close(): Promise<void>
}

/** Nothing is read of the weights but their headers; every tensor that the decoder needs is known to be there. */
export async function openCheckpoint(directory: string, options: CheckpointOptions = {}): Promise<Checkpoint> {
  const text = await readText(join(directory, 'config.json'))
  const config = parseJsonObject(text, 'config.json')
  const family = familyOf(config)
  const warnings: string[] = []
  const fields = new ConfigFields(config, family.defaults)
  const decoder = family.decoder(fields, {
    maxPositions: options.maxPositions ?? Number.POSITIVE_INFINITY,
    warn: (warning) => warnings.push(warning),
  })
  const unknown = fields.finish()
  if (unknown.length > 0) {
    warnings.push(`config.json has fields that nothing here reads: ${unknown.join(', ')}`)
  }
  const tensors = decoderTensors(decoder)
  const files = await openWeightFiles(directory, tensors)
  warnings.push(...files.warnings)
  try {
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
        baseDigest: await digest(text, files),
        warnings,
      },
      shape,
      readTensor: (name, out) => {
        shape(name)
        return files.read(name, out)
      },
      close: () => files.close(),
    }
  } catch (error) {
    await files.close()
    throw error
  }
}

async function digest(config: string, files: WeightFiles): Promise<string> {
  const hash = createHash('sha256')
  hash.update(`${Buffer.byteLength(config)}\n`).update(config)
  await files.addTo(hash)
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
