/**
 * Rotary embeddings as tables of cosines and sines, computed as transformers computes them: in float32 at the same places, so that
 * far positions round alike. Pure. https://arxiv.org/abs/2104.09864
 */

import type { RopeTable } from './decoder-spec.ts'
import { ModelError } from './model-error.ts'
import type { RopeParameters } from './rope-parameters.ts'

const f32 = Math.fround

export interface RopeRequest {
  parameters: RopeParameters
  headSize: number
  /** The model's own `max_position_embeddings`. */
  modelPositions: number
  /** Rows of the tables. */
  positions: number
}

export function ropeTable({ parameters, headSize, modelPositions, positions }: RopeRequest): RopeTable {
  const rotaryDim = Math.trunc(headSize * parameters.partialRotaryFactor)
  if (rotaryDim < 2 || rotaryDim % 2 !== 0) {
    throw new ModelError(`a rotary embedding over ${rotaryDim} of ${headSize} numbers a head is not possible`)
  }
  const frequencies = plainFrequencies(parameters.theta, rotaryDim)
  switch (parameters.type) {
    case 'default':
      return table(frequencies, 1, rotaryDim, positions)
    case 'linear':
      return table(
        frequencies.map((x) => f32(x / f32(parameters.factor))),
        1,
        rotaryDim,
        positions,
      )
    // NTK scaling by the sequence's length begins beyond the model's own positions; up to there it is the plain embedding.
    case 'dynamic':
      return table(frequencies, 1, rotaryDim, Math.min(positions, modelPositions))
    case 'llama3':
      return table(llama3Frequencies(frequencies, parameters), 1, rotaryDim, positions)
    case 'yarn':
      return table(yarnFrequencies(rotaryDim, parameters), yarnAttentionFactor(parameters), rotaryDim, positions)
    case 'longrope': {
      const factor = longropeAttentionFactor(parameters, modelPositions)
      const scaled = (factors: number[]) => longropeFrequencies(rotaryDim, parameters.theta, factors)
      const short = table(scaled(parameters.shortFactor), factor, rotaryDim, positions)
      const { originalPositions } = parameters
      if (positions <= originalPositions) {
        return short
      }
      const { cos, sin } = table(scaled(parameters.longFactor), factor, rotaryDim, positions)
      return { ...short, long: { originalPositions, cos, sin } }
    }
  }
}

/** cos and sin of position × frequency, `[positions, frequencies]`, times the attention factor. */
function table(frequencies: Float32Array, attentionFactor: number, rotaryDim: number, positions: number): RopeTable {
  const width = frequencies.length
  const cos = new Float32Array(positions * width)
  const sin = new Float32Array(positions * width)
  const factor = f32(attentionFactor)
  for (let position = 0; position < positions; position++) {
    for (let i = 0; i < width; i++) {
      const angle = f32(position * frequencies[i]!)
      cos[position * width + i] = f32(Math.cos(angle)) * factor
      sin[position * width + i] = f32(Math.sin(angle)) * factor
    }
  }
  return { rotaryDim, positions, cos, sin }
}

/** θ^(2i / dim), `[dim / 2]`. */
function powers(theta: number, dim: number): Float32Array {
  return Float32Array.from({ length: dim / 2 }, (_, i) => f32(theta) ** f32((2 * i) / dim))
}

function plainFrequencies(theta: number, dim: number): Float32Array {
  return powers(theta, dim).map((power) => 1 / power)
}

type Of<Type extends RopeParameters['type']> = Extract<RopeParameters, { type: Type }>

/** Long wavelengths are stretched by `factor`, short ones kept, those between blended. */
function llama3Frequencies(frequencies: Float32Array, parameters: Of<'llama3'>): Float32Array {
  const { factor, lowFreqFactor, highFreqFactor, originalPositions } = parameters
  const longest = originalPositions / lowFreqFactor
  const shortest = originalPositions / highFreqFactor
  return frequencies.map((frequency) => {
    const wavelength = f32((2 * Math.PI) / frequency)
    if (wavelength > longest) {
      return frequency / factor
    }
    if (wavelength < shortest) {
      return frequency
    }
    const kept = f32(f32(f32(originalPositions / wavelength) - lowFreqFactor) / (highFreqFactor - lowFreqFactor))
    return f32(f32(f32(1 - kept) * frequency) / factor) + f32(kept * frequency)
  })
}

/** https://arxiv.org/abs/2309.00071 */
function yarnFrequencies(dim: number, parameters: Of<'yarn'>): Float32Array {
  const { theta, factor, originalPositions, betaFast, betaSlow, truncate } = parameters
  /** The dimension that turns `rotations` times within the original positions. */
  const dimensionOf = (rotations: number) =>
    (dim * Math.log(originalPositions / (rotations * 2 * Math.PI))) / (2 * Math.log(theta))
  const bound = (x: number, round: (x: number) => number) => (truncate ? round(x) : x)
  const low = Math.max(bound(dimensionOf(betaFast), Math.floor), 0)
  const end = Math.min(bound(dimensionOf(betaSlow), Math.ceil), dim - 1)
  const high = low === end ? end + 0.001 : end
  return powers(theta, dim).map((power, i) => {
    const ramp = Math.min(Math.max(f32(f32(i - low) / f32(high - low)), 0), 1)
    const extrapolated = f32(1 - ramp)
    const scaled = f32(f32(1 / f32(factor * power)) * f32(1 - extrapolated))
    return scaled + f32(f32(1 / power) * extrapolated)
  })
}

function yarnAttentionFactor({ attentionFactor, factor, mscale, mscaleAllDim }: Of<'yarn'>): number {
  const growth = (weight: number) => (factor <= 1 ? 1 : 0.1 * weight * Math.log(factor) + 1)
  if (attentionFactor !== undefined) {
    return attentionFactor
  }
  return mscale && mscaleAllDim ? growth(mscale) / growth(mscaleAllDim) : growth(1)
}

/** https://arxiv.org/abs/2402.13753 */
function longropeFrequencies(dim: number, theta: number, factors: number[]): Float32Array {
  if (factors.length !== dim / 2) {
    throw new ModelError(
      `config.json has longrope factors for ${factors.length} frequencies; the heads have ${dim / 2}`,
    )
  }
  return powers(theta, dim).map((power, i) => 1 / f32(f32(factors[i]!) * power))
}

function longropeAttentionFactor(parameters: Of<'longrope'>, modelPositions: number): number {
  const { attentionFactor, originalPositions } = parameters
  const factor = parameters.factor ?? modelPositions / originalPositions
  return attentionFactor ?? (factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(originalPositions)))
}
