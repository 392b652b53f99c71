/** The sessions of one base model: one a graph form, made when first needed, over one copy of the weights. */

import type { OrtEnvironment } from '../../ort/environment.ts'
import { OrtSession, PrepackedWeights } from '../../ort/session.ts'
import type { OrtTensor } from '../../ort/tensor.ts'
import type { DecoderSpec } from '../decoder-spec.ts'
import { buildDecoderGraph } from '../graph/decoder-graph.ts'
import { formKey, type GraphForm } from '../graph/graph-form.ts'
import type { WeightPlan } from '../graph/weight-plan.ts'

export class SessionPool {
  readonly #environment: OrtEnvironment
  readonly #decoder: DecoderSpec
  readonly #plan: WeightPlan
  readonly #initializers: ReadonlyMap<string, OrtTensor>
  readonly #prepacked: PrepackedWeights
  readonly #customOps: readonly bigint[]
  readonly #sessions = new Map<string, OrtSession>()

  constructor(
    environment: OrtEnvironment,
    decoder: DecoderSpec,
    plan: WeightPlan,
    initializers: ReadonlyMap<string, OrtTensor>,
    customOps: readonly bigint[],
  ) {
    this.#environment = environment
    this.#decoder = decoder
    this.#plan = plan
    this.#initializers = initializers
    this.#customOps = customOps
    this.#prepacked = new PrepackedWeights(environment)
  }

  get(form: GraphForm): OrtSession {
    const key = formKey(form)
    const known = this.#sessions.get(key)
    if (known !== undefined) {
      return known
    }
    const session = new OrtSession(this.#environment, {
      model: buildDecoderGraph(this.#decoder, this.#plan, form),
      initializers: this.#initializers,
      prepacked: this.#prepacked,
      customOps: this.#customOps,
    })
    this.#sessions.set(key, session)
    return session
  }

  dispose(): void {
    for (const session of this.#sessions.values()) {
      session.dispose()
    }
    this.#sessions.clear()
    this.#prepacked.dispose()
  }
}
