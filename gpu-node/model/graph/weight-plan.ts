/**
 * Which matrices and vectors the graph holds: projections with the same input become one matrix, constant factors are
 * folded into the weights. The graph builder, the weight store and the adapter packer agree through this plan.
 */

import type { DecoderSpec, LayerSpec, LinearSpec, NormSpec } from '../decoder-spec.ts'

/** `y = x·Wᵀ + b` with the rows of several modules one under another. */
export interface MatrixPlan {
  name: string
  /** Modules in order of their rows. */
  parts: readonly LinearSpec[]
  inFeatures: number
  outFeatures: number
  /** Some part has a bias; the others' are zero. */
  hasBias: boolean
  /** Weight, bias and whatever an adapter adds are multiplied by it. */
  multiplier: number
}

export interface NormPlan {
  name: string
  spec: NormSpec
  size: number
}

export type MlpPlan =
  | { kind: 'gated'; gateUp: MatrixPlan; down: MatrixPlan }
  | { kind: 'plain'; up: MatrixPlan; down: MatrixPlan }
  | { kind: 'moe'; router: MatrixPlan; experts: { gateUp: MatrixPlan; down: MatrixPlan }[] }

export interface LayerPlan {
  spec: LayerSpec
  attentionNorm?: NormPlan
  qkv: MatrixPlan
  qNorm?: NormPlan
  kNorm?: NormPlan
  o: MatrixPlan
  postAttentionNorm?: NormPlan
  mlpNorm?: NormPlan
  mlp: MlpPlan
  postMlpNorm?: NormPlan
}

export interface WeightPlan {
  layers: LayerPlan[]
  finalNorm: NormPlan
  head: MatrixPlan
}

export function planWeights(decoder: DecoderSpec): WeightPlan {
  return {
    layers: decoder.layers.map((layer, i) => planLayer(decoder, layer, `layers.${i}`)),
    finalNorm: { name: 'finalNorm', spec: decoder.finalNorm, size: decoder.hiddenSize },
    head: planMatrix(HEAD, [decoder.head], 1 / (decoder.head.divisor ?? 1)),
  }
}

const HEAD = 'head'

/** The head reads the tokens whose logits are wanted: `[n, 1, hidden]`. */
export function isHead(matrix: MatrixPlan): boolean {
  return matrix.name === HEAD
}

/** A router stays in float32 in every format: a flipped choice of expert costs more than its few weights. */
export function isRouter(matrix: MatrixPlan): boolean {
  return matrix.name.endsWith('.router')
}

export function planMatrices(plan: WeightPlan): MatrixPlan[] {
  return [...plan.layers.flatMap(({ qkv, o, mlp }) => [qkv, o, ...mlpMatrices(mlp)]), plan.head]
}

export function planNorms(plan: WeightPlan): NormPlan[] {
  const norms = plan.layers.flatMap((it) => [
    it.attentionNorm,
    it.qNorm,
    it.kNorm,
    it.postAttentionNorm,
    it.mlpNorm,
    it.postMlpNorm,
  ])
  return [...norms, plan.finalNorm].filter((norm) => norm !== undefined)
}

function planLayer(decoder: DecoderSpec, spec: LayerSpec, name: string): LayerPlan {
  const { attention } = spec
  const { qkv, qkNorm } = attention
  const branch = spec.residualMultiplier ?? 1
  const norm = (key: string, it: NormSpec | undefined, size: number = decoder.hiddenSize): NormPlan | undefined =>
    it && { name: `${name}.${key}`, spec: it, size }
  const qNormSize = decoder.headSize * (qkNorm?.perHead ? 1 : decoder.heads)
  const kNormSize = decoder.headSize * (qkNorm?.perHead ? 1 : decoder.kvHeads)
  // A norm after the branch undoes a factor before it; no family has both.
  return {
    spec,
    attentionNorm: norm('attentionNorm', spec.attentionNorm),
    qkv: planMatrix(`${name}.qkv`, qkv.kind === 'fused' ? [qkv.qkv] : [qkv.q, qkv.k, qkv.v]),
    qNorm: norm('qNorm', qkNorm?.q, qNormSize),
    kNorm: norm('kNorm', qkNorm?.k, kNormSize),
    o: planMatrix(`${name}.o`, [attention.o], branch),
    postAttentionNorm: norm('postAttentionNorm', spec.postAttentionNorm),
    mlpNorm: norm('mlpNorm', spec.mlpNorm),
    mlp: planMlp(spec, name, branch),
    postMlpNorm: norm('postMlpNorm', spec.postMlpNorm),
  }
}

function planMlp({ mlp }: LayerSpec, name: string, branch: number): MlpPlan {
  switch (mlp.kind) {
    case 'gated':
      return {
        kind: 'gated',
        gateUp: planMatrix(`${name}.gateUp`, [mlp.gate, mlp.up]),
        down: planMatrix(`${name}.down`, [mlp.down], branch),
      }
    case 'gated-fused':
      return {
        kind: 'gated',
        gateUp: planMatrix(`${name}.gateUp`, [mlp.gateUp]),
        down: planMatrix(`${name}.down`, [mlp.down], branch),
      }
    case 'plain':
      return {
        kind: 'plain',
        up: planMatrix(`${name}.up`, [mlp.up]),
        down: planMatrix(`${name}.down`, [mlp.down], branch),
      }
    case 'moe':
      return {
        kind: 'moe',
        router: planMatrix(`${name}.router`, [mlp.router]),
        experts: mlp.experts.map(({ gate, up, down }, i) => ({
          gateUp: planMatrix(`${name}.experts.${i}.gateUp`, [gate, up]),
          down: planMatrix(`${name}.experts.${i}.down`, [down], branch),
        })),
      }
  }
}

function planMatrix(name: string, parts: readonly LinearSpec[], multiplier = 1): MatrixPlan {
  return {
    name,
    parts,
    inFeatures: parts[0]!.inFeatures,
    outFeatures: parts.reduce((sum, part) => sum + part.outFeatures, 0),
    hasBias: parts.some((part) => part.bias !== undefined),
    multiplier,
  }
}

function mlpMatrices(mlp: MlpPlan): MatrixPlan[] {
  switch (mlp.kind) {
    case 'gated':
      return [mlp.gateUp, mlp.down]
    case 'plain':
      return [mlp.up, mlp.down]
    case 'moe':
      return [mlp.router, ...mlp.experts.flatMap(({ gateUp, down }) => [gateUp, down])]
  }
}
