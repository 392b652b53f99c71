/** The feed-forward branch of a layer: gated, plain or experts. */

import { writeActivation } from './activation.ts'
import { writeGated } from './gated-mlp.ts'
import type { BuildForm } from './graph-form.ts'
import type { GraphWriter } from './graph-writer.ts'
import { writeLinear } from './linear.ts'
import { writeMoe } from './moe.ts'
import type { LayerPlan } from './weight-plan.ts'

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
