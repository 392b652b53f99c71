/** The gated feed-forward, of a layer or of one expert. */

import type { Activation } from '../decoder-spec.ts'
import { writeActivation } from './activation.ts'
import type { BuildForm } from './graph-form.ts'
import type { GraphWriter } from './graph-writer.ts'
import { writeFusedLinear, writeLinear } from './linear.ts'
import type { MatrixPlan } from './weight-plan.ts'

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
