/** A decoder's layers where the int8 product also norms, gates and adds: few nodes, and no vector goes through memory between them. */

import type { DecoderSpec } from '../decoder-spec.ts'
import { writeActivation } from './activation.ts'
import { writeContext } from './attention.ts'
import { writeGate } from './gated-mlp.ts'
import type { BuildForm } from './graph-form.ts'
import type { GraphWriter } from './graph-writer.ts'
import { type Surroundings, writeFusedLinear } from './linear.ts'
import { writeMoe } from './moe.ts'
import { writeNorm } from './norm.ts'
import type { LayerPlan, MatrixPlan, NormPlan, WeightPlan } from './weight-plan.ts'

/** From embeddings `[rows, tokens, hidden]` to the output of the last norm. */
export function writeFusedLayers(
  graph: GraphWriter,
  form: BuildForm,
  decoder: DecoderSpec,
  plan: WeightPlan,
  embeddings: string,
): string {
  let sum = embeddings
  for (const [i, layer] of plan.layers.entries()) {
    const qkv = writeFusedLinear(graph, form, layer.qkv, normed(graph, layer.attentionNorm, sum))
    const context = writeContext(graph, form, decoder, layer, i, qkv)
    sum = writeJoining(graph, form, layer.o, context, layer.postAttentionNorm, sum)
    sum = writeFusedMlp(graph, form, layer, sum)
  }
  return writeNorm(graph, plan.finalNorm, sum)
}

function writeFusedMlp(graph: GraphWriter, form: BuildForm, layer: LayerPlan, sum: string): string {
  const { mlp, mlpNorm, postMlpNorm, spec } = layer
  if (mlp.kind === 'moe') {
    const x = mlpNorm === undefined ? sum : writeNorm(graph, mlpNorm, sum)
    if (spec.mlp.kind !== 'moe') {
      throw new TypeError('plan and spec of a layer differ')
    }
    return join(graph, writeMoe(graph, form, mlp, spec.mlp, x), postMlpNorm, sum)
  }
  const around = normed(graph, mlpNorm, sum)
  const { activation } = spec.mlp
  if (mlp.kind === 'plain') {
    const up = writeActivation(graph, activation, writeFusedLinear(graph, form, mlp.up, around))
    return writeJoining(graph, form, mlp.down, up, postMlpNorm, sum)
  }
  const gated =
    activation === 'silu'
      ? writeFusedLinear(graph, form, mlp.gateUp, { ...around, gated: true })
      : writeGate(graph, activation, mlp.gateUp, writeFusedLinear(graph, form, mlp.gateUp, around))
  return writeJoining(graph, form, mlp.down, gated, postMlpNorm, sum)
}

/** RMSNorm is the product's own. */
function normed(graph: GraphWriter, norm: NormPlan | undefined, sum: string): Surroundings {
  if (norm === undefined) {
    return { x: sum }
  }
  return norm.spec.kind === 'rms' ? { x: sum, norm } : { x: writeNorm(graph, norm, sum) }
}

/** The branch's last product, whose output joins the sum, through a norm of its own where the layer has one. */
function writeJoining(
  graph: GraphWriter,
  form: BuildForm,
  matrix: MatrixPlan,
  x: string,
  postNorm: NormPlan | undefined,
  sum: string,
): string {
  return postNorm === undefined
    ? writeFusedLinear(graph, form, matrix, { x, addTo: sum })
    : join(graph, writeFusedLinear(graph, form, matrix, { x }), postNorm, sum)
}

function join(graph: GraphWriter, branch: string, postNorm: NormPlan | undefined, sum: string): string {
  return graph.node('Add', [sum, postNorm === undefined ? branch : writeNorm(graph, postNorm, branch)])
}
