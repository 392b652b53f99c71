/** Walks a `DecoderSpec`: the tensors it needs with their shapes, and the modules that adapters may name. Pure. */

import type { DecoderSpec, LinearSpec, MlpSpec, NormSpec } from './decoder-spec.ts'
import type { BaseModule } from './model-spec.ts'

/** Name to shape, as in the checkpoint. */
export function decoderTensors(spec: DecoderSpec): Map<string, number[]> {
  const tensors = new Map<string, number[]>()
  const norm = (it: NormSpec | undefined, size: number) => {
    if (it !== undefined) {
      tensors.set(it.weight, [size])
      if (it.bias !== undefined) {
        tensors.set(it.bias, [size])
      }
    }
  }
  tensors.set(spec.embedding.weight, [spec.vocabSize, spec.hiddenSize])
  if (spec.embedding.positionWeight !== undefined) {
    tensors.set(spec.embedding.positionWeight, [spec.embedding.positionRows ?? spec.maxPositions, spec.hiddenSize])
  }
  for (const it of decoderLinears(spec)) {
    tensors.set(it.weight, it.transposed ? [it.inFeatures, it.outFeatures] : [it.outFeatures, it.inFeatures])
    if (it.bias !== undefined) {
      tensors.set(it.bias, [it.outFeatures])
    }
  }
  for (const layer of spec.layers) {
    for (const it of [layer.attentionNorm, layer.postAttentionNorm, layer.mlpNorm, layer.postMlpNorm]) {
      norm(it, spec.hiddenSize)
    }
    const { qkNorm } = layer.attention
    norm(qkNorm?.q, spec.headSize * (qkNorm?.perHead ? 1 : spec.heads))
    norm(qkNorm?.k, spec.headSize * (qkNorm?.perHead ? 1 : spec.kvHeads))
  }
  norm(spec.finalNorm, spec.hiddenSize)
  return tensors
}

/** Every matrix with an input and an output, the head last. */
export function decoderLinears(spec: DecoderSpec): LinearSpec[] {
  return [
    ...spec.layers.flatMap(({ attention, mlp }) => {
      const { qkv } = attention
      return [...(qkv.kind === 'fused' ? [qkv.qkv] : [qkv.q, qkv.k, qkv.v]), attention.o, ...mlpLinears(mlp)]
    }),
    spec.head,
  ]
}

function mlpLinears(mlp: MlpSpec): LinearSpec[] {
  switch (mlp.kind) {
    case 'gated':
      return [mlp.gate, mlp.up, mlp.down]
    case 'gated-fused':
      return [mlp.gateUp, mlp.down]
    case 'plain':
      return [mlp.up, mlp.down]
    case 'moe':
      return [mlp.router, ...mlp.experts.flatMap(({ gate, up, down }) => [gate, up, down])]
  }
}

/** Experts and routers are listed too: whether an adapter on them can be applied is the packer's to say. */
export function decoderModules(spec: DecoderSpec): Map<string, BaseModule> {
  const modules = new Map<string, BaseModule>()
  const { module } = spec.embedding
  modules.set(module, {
    name: module,
    kind: 'embedding',
    inFeatures: spec.vocabSize,
    outFeatures: spec.hiddenSize,
    transposed: false,
  })
  for (const { module: name, inFeatures, outFeatures, transposed = false } of decoderLinears(spec)) {
    modules.set(name, { name, kind: 'linear', inFeatures, outFeatures, transposed })
  }
  return modules
}
