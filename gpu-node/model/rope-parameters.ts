/**
 * Rotary parameters out of config.json, in both forms: `rope_theta` beside `rope_scaling` (classic), or `rope_parameters`
 * (transformers 5), flat or nested by kind of layer.
 */

import { type ConfigFields, ConfigFields as Fields, invalid } from './config-fields.ts'
import { ModelError } from './model-error.ts'

interface Common {
  theta: number
  /** Part of each head's numbers that turns. */
  partialRotaryFactor: number
}

export type RopeParameters = Common &
  (
    | { type: 'default' }
    | { type: 'linear'; factor: number }
    | { type: 'dynamic'; factor: number }
    | { type: 'llama3'; factor: number; lowFreqFactor: number; highFreqFactor: number; originalPositions: number }
    | {
        type: 'yarn'
        factor: number
        originalPositions: number
        betaFast: number
        betaSlow: number
        truncate: boolean
        attentionFactor?: number
        mscale?: number
        mscaleAllDim?: number
      }
    | {
        type: 'longrope'
        shortFactor: number[]
        longFactor: number[]
        originalPositions: number
        factor?: number
        attentionFactor?: number
      }
  )

export interface RopeDefaults {
  theta: number
  /** `max_position_embeddings`, which stands in for a missing `original_max_position_embeddings`. */
  modelPositions: number
  /** The architecture's code can turn a part of each head (Phi-3). */
  partial?: boolean
  /** What the first Phi-3 checkpoints called `yarn` is longrope. */
  yarnMeansLongrope?: boolean
}

/** The one embedding of a model whose layers all turn alike. */
export function readRope(config: ConfigFields, defaults: RopeDefaults): RopeParameters {
  const scaling = config.object('rope_scaling') ?? {}
  const modern = config.object('rope_parameters') ?? {}
  const given = Object.keys(scaling).length > 0 ? scaling : modern
  const theta = config.optionalNumber('rope_theta') ?? defaults.theta
  // transformers 5 may nest the parameters by kind of layer, even where all kinds turn alike.
  const nested = Object.values(given).filter(isObject)
  if (nested.some((entry) => JSON.stringify(entry) !== JSON.stringify(nested[0]))) {
    throw invalid('rope_parameters', given, 'the same for all kinds of layers in this architecture')
  }
  return readEntry(config, nested[0] ?? given, { ...defaults, theta })
}

/** Gemma 3: full and sliding attention turn with their own parameters. */
export function readRopeByLayerType(
  config: ConfigFields,
  defaults: { modelPositions: number; fullTheta: number; slidingTheta: number },
): { full: RopeParameters; sliding: RopeParameters } {
  const { modelPositions } = defaults
  const modern = config.object('rope_parameters') ?? {}
  const entry = (name: string) => {
    const value = modern[name] ?? {}
    if (!isObject(value)) {
      throw invalid(`rope_parameters.${name}`, value, 'an object')
    }
    return value
  }
  const full = { ...entry('full_attention'), ...config.object('rope_scaling') }
  const fullTheta = config.optionalNumber('rope_theta') ?? defaults.fullTheta
  const slidingTheta = config.optionalNumber('rope_local_base_freq') ?? defaults.slidingTheta
  return {
    full: readEntry(config, full, { modelPositions, theta: fullTheta }),
    sliding: readEntry(config, entry('sliding_attention'), { modelPositions, theta: slidingTheta }),
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function readEntry(config: ConfigFields, entry: Record<string, unknown>, defaults: RopeDefaults): RopeParameters {
  const fields = new Fields(entry)
  const given = fields.raw('rope_type') ?? fields.raw('type') ?? 'default'
  fields.skip('type')
  const type = given === 'yarn' && defaults.yarnMeansLongrope ? 'longrope' : given
  const common: Common = {
    theta: fields.optionalNumber('rope_theta') ?? defaults.theta,
    partialRotaryFactor:
      fields.optionalNumber('partial_rotary_factor') ?? config.optionalNumber('partial_rotary_factor') ?? 1,
  }
  const ownOriginal = fields.optionalSize('original_max_position_embeddings')
  // As in transformers, the config's own field wins over that beside the factors.
  const originalPositions =
    config.optionalSize('original_max_position_embeddings') ?? ownOriginal ?? defaults.modelPositions
  if (common.partialRotaryFactor !== 1 && defaults.partial !== true) {
    throw invalid('partial_rotary_factor', common.partialRotaryFactor, '1 in this architecture')
  }
  const parameters = readType(type, common, fields, originalPositions)
  const unread = fields.finish()
  if (unread.length > 0) {
    throw new ModelError(`config.json has unknown rope parameters for type '${parameters.type}': ${unread.join(', ')}`)
  }
  return parameters
}

function readType(type: unknown, common: Common, fields: ConfigFields, originalPositions: number): RopeParameters {
  switch (type) {
    case 'default':
      fields.skip('factor')
      return { type, ...common }
    case 'linear':
    case 'dynamic':
      return { type, ...common, factor: atLeastOne(fields, 'factor') }
    case 'llama3':
      return {
        type,
        ...common,
        factor: atLeastOne(fields, 'factor'),
        lowFreqFactor: fields.number('low_freq_factor'),
        highFreqFactor: fields.number('high_freq_factor'),
        originalPositions,
      }
    case 'yarn':
      return {
        type,
        ...common,
        factor: atLeastOne(fields, 'factor'),
        originalPositions,
        // 0 stands for the default, as in transformers.
        betaFast: fields.optionalNumber('beta_fast') || 32,
        betaSlow: fields.optionalNumber('beta_slow') || 1,
        truncate: (fields.raw('truncate') ?? true) !== false,
        attentionFactor: fields.optionalNumber('attention_factor'),
        mscale: fields.optionalNumber('mscale'),
        mscaleAllDim: fields.optionalNumber('mscale_all_dim'),
      }
    // `su` is what the first Phi-3 checkpoints called it.
    case 'su':
    case 'longrope':
      return {
        type: 'longrope',
        ...common,
        shortFactor: numbers(fields, 'short_factor'),
        longFactor: numbers(fields, 'long_factor'),
        originalPositions,
        factor: fields.optionalNumber('factor'),
        attentionFactor: fields.optionalNumber('attention_factor'),
      }
    default:
      throw invalid('rope_type', type, 'default, linear, dynamic, llama3, yarn or longrope')
  }
}

function atLeastOne(fields: ConfigFields, name: string): number {
  const value = fields.number(name)
  if (value < 1) {
    throw invalid(name, value, 'at least 1')
  }
  return value
}

function numbers(fields: ConfigFields, name: string): number[] {
  const value = fields.raw(name)
  if (!Array.isArray(value) || !value.every((x) => typeof x === 'number' && Number.isFinite(x) && x > 0)) {
    throw invalid(name, value, 'a list of positive numbers')
  }
  return value
}
