/** The feed-forward branch: gated or plain; experts are in moe.ts. */

import type { Activation } from '../decoder-spec.ts'
import type { BuildForm } from './graph-form.ts'
import { type GraphWriter, MICROSOFT } from './graph-writer.ts'
import { writeFusedLinear, writeLinear } from './linear.ts'
import { writeMoe } from './moe.ts'
import type { LayerPlan, MatrixPlan } from './weight-plan.ts'

export function writeMlp(graph: GraphWriter, form: BuildForm, { mlp: plan, spec }: LayerPlan, x: string): string {
  if (plan.kind === 'moe') {
    if (spec.mlp.kind !== 'moe') {
      throw new TypeError('plan and spec of a layer differ')
    }
    return writeMoe(graph, form, plan, spec.mlp, x)
  }
  const { activation } = spec.mlp
  if (plan.kind === 'gated') {
    return writeGated(graph, form, plan.gateUp, plan.down, activation, x)
  }
  return writeLinear(graph, form, plan.down, writeActivation(graph, activation, writeLinear(graph, form, plan.up, x)))
}

/** `down(act(gate(x)) · up(x))`. */
export function writeGated(
  graph: GraphWriter,
  form: BuildForm,
  gateUp: MatrixPlan,
  down: MatrixPlan,
  activation: Activation,
  x: string,
): string {
  if (form.fused === true && activation === 'silu') {
    return writeLinear(graph, form, down, writeFusedLinear(graph, form, gateUp, { x, gated: true }))
  }
  return writeLinear(graph, form, down, writeGate(graph, activation, gateUp, writeLinear(graph, form, gateUp, x)))
}

/** From the product of gate and up, one behind the other. */
export function writeGate(graph: GraphWriter, activation: Activation, gateUp: MatrixPlan, both: string): string {
  const half = gateUp.outFeatures / 2
  const [gate, up] = graph.nodes('Split', [both, graph.int64([half, half])], { attributes: { axis: -1 }, outputs: 2 })
  return graph.node('Mul', [writeActivation(graph, activation, gate!), up!])
}

export function writeActivation(graph: GraphWriter, activation: Activation, x: string): string {
  switch (activation) {
    case 'silu':
      return graph.node('QuickGelu', [x], { domain: MICROSOFT, attributes: { alpha: { float: 1 } } })
    case 'gelu':
      return graph.node('Gelu', [x], { attributes: { approximate: 'none' } })
    case 'gelu_tanh':
      return graph.node('Gelu', [x], { attributes: { approximate: 'tanh' } })
    case 'relu':
      return graph.node('Relu', [x])
  }
}
