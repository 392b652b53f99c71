/** Mixture of experts, every expert computed and weighed by the router: exact in every weight format, and adaptable. */

import type { MlpSpec } from '../decoder-spec.ts'
import { writeGated } from './gated-mlp.ts'
import type { BuildForm } from './graph-form.ts'
import type { GraphWriter } from './graph-writer.ts'
import { writeLinear } from './linear.ts'
import type { MlpPlan } from './weight-plan.ts'

type MoeSpec = Extract<MlpSpec, { kind: 'moe' }>
type MoePlan = Extract<MlpPlan, { kind: 'moe' }>

export function writeMoe(graph: GraphWriter, form: BuildForm, plan: MoePlan, spec: MoeSpec, x: string): string {
  const shares = writeRouting(graph, form, plan, spec, x)
  const columns = graph.nodes('Split', [shares, graph.int64(plan.experts.map(() => 1))], {
    attributes: { axis: -1 },
    outputs: plan.experts.length,
  })
  const weighed = plan.experts.map(({ gateUp, down }, i) =>
    graph.node('Mul', [writeGated(graph, form, gateUp, down, spec.activation, x), columns[i]!]),
  )
  return graph.node('Sum', weighed)
}

/** `[rows, tokens, experts]`: each token's share of each expert, zero for those not chosen. */
function writeRouting(graph: GraphWriter, form: BuildForm, plan: MoePlan, spec: MoeSpec, x: string): string {
  const logits = writeLinear(graph, { ...form, weights: 'f32' }, plan.router, x)
  const all = graph.node('Softmax', [logits], { attributes: { axis: -1 } })
  const k = graph.int64([spec.expertsPerToken])
  const [top, indices] = graph.nodes('TopK', [all, k], { attributes: { axis: -1 }, outputs: 2 })
  const shares = spec.normalise
    ? graph.node('Div', [top!, graph.node('ReduceSum', [top!, graph.int64([-1])], { attributes: { keepdims: 1 } })])
    : top!
  const zeros = graph.node('Sub', [all, all])
  return graph.node('ScatterElements', [zeros, indices!, shares], { attributes: { axis: -1 } })
}
