/** RMSNorm and LayerNorm, alone or fused with the addition before them. */

import { type GraphWriter, MICROSOFT } from './graph-writer.ts'
import type { NormPlan } from './weight-plan.ts'

export function writeNorm(graph: GraphWriter, norm: NormPlan, x: string): string {
  const attributes = { axis: -1, epsilon: { float: norm.spec.epsilon } }
  return norm.spec.kind === 'rms'
    ? graph.node('SimplifiedLayerNormalization', [x, normWeight(graph, norm)], { attributes })
    : graph.node('LayerNormalization', [x, normWeight(graph, norm), normBias(graph, norm)], { attributes })
}

export interface Residual {
  /** What later branches are added to. */
  sum: string
  /** What the next branch reads: the sum, normed where the layer says so. */
  input: string
}

/** Adds a branch to the residual stream and norms the sum. */
export function writeAddNorm(graph: GraphWriter, norm: NormPlan | undefined, sum: string, branch: string): Residual {
  if (norm === undefined) {
    const added = graph.node('Add', [sum, branch])
    return { sum: added, input: added }
  }
  const rms = norm.spec.kind === 'rms'
  const inputs = [branch, sum, normWeight(graph, norm), rms ? '' : normBias(graph, norm)]
  const [normed, , , added] = graph.nodes(
    rms ? 'SkipSimplifiedLayerNormalization' : 'SkipLayerNormalization',
    rms ? inputs.slice(0, 3) : inputs,
    { domain: MICROSOFT, attributes: { epsilon: { float: norm.spec.epsilon } }, outputs: 4 },
    [undefined, '', '', undefined],
  )
  return { sum: added!, input: normed! }
}

function normWeight(graph: GraphWriter, { name, size }: NormPlan): string {
  return graph.weight(`${name}.weight`, 'float32', [size])
}

function normBias(graph: GraphWriter, { name, spec, size }: NormPlan): string {
  return spec.bias === undefined ? '' : graph.weight(`${name}.bias`, 'float32', [size])
}
