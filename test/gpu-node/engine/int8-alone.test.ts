/**
 * The engine on the demo model in int8: the same seed gives the same text whatever else is in the batch, where this node's own
 * int8 product runs. ONNX Runtime's does not hold it (docs/sampling.md).
 */

import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { SamplingParams } from '../../../gpu-node/engine/engine-types.ts'
import { createOrtRunner } from '../../../gpu-node/model/runner/ort-runner.ts'
import { linearSets } from '../../../gpu-node/ort/linear-kernel/linear-op.ts'
import { DEMO_EOS, type DemoModel, type DemoVariant, loadDemoModel } from '../../support/demo-model.ts'
import { EngineHarness, GREEDY, requestOf } from '../../support/engine-harness.ts'

const VARIANTS: readonly DemoVariant[] = ['base', 'orders-json', 'orders-sql', 'redact', 'triage', 'pirate']
const NEW_TOKENS = 20

interface Arrival {
  variant: DemoVariant
  promptIndex: number
  sampling: SamplingParams
  atStep: number
}

const arrival: fc.Arbitrary<Arrival> = fc.record({
  variant: fc.constantFrom(...VARIANTS),
  promptIndex: fc.nat(7),
  sampling: fc.oneof(
    fc.constant(GREEDY),
    fc.record({
      doSample: fc.constant(true),
      temperature: fc.constantFrom(0.7, 1.5),
      seed: fc.nat(),
      alternatives: fc.constant(0),
    }),
  ),
  atStep: fc.nat(12),
})

describe.runIf(linearSets().length > 0)('int8', () => {
  let demo: DemoModel
  beforeAll(async () => {
    const sizes = { maxRows: 6, maxPositions: 160, adapterSlots: 4 }
    demo = await loadDemoModel(sizes, (checkpoint) =>
      createOrtRunner({ ...sizes, checkpoint, dtype: 'int8', threads: 2 }),
    )
  })
  afterAll(() => demo.runner.dispose())

  function submit(harness: EngineHarness, id: string, { variant, promptIndex, sampling }: Arrival): void {
    const adapter = demo.adapters.get(variant)
    const digest = adapter === undefined ? {} : { adapterDigest: adapter.digest }
    const promptTokens = Int32Array.from(demo.golden.prompt_ids[promptIndex]!)
    const request = { eosTokens: [DEMO_EOS], maxNewTokens: NEW_TOKENS, promptTokens, sampling, ...digest }
    harness.engine.submit(requestOf(id, request), adapter)
  }

  /** The next engine on this runner finds it as the first one did. */
  function emptySlots({ engine }: EngineHarness): void {
    for (const { digest } of demo.adapters.values()) {
      engine.unloadAdapter(digest, () => {})
    }
  }

  function alone(one: Arrival): number[] {
    const harness = new EngineHarness({ runner: demo.runner, limits: { prefixCacheBytes: 0 } })
    submit(harness, 'alone', one)
    harness.runUntilIdle()
    emptySlots(harness)
    expect(harness.endings('alone')).toMatchObject([{ kind: 'finished' }])
    return harness.tokenIds('alone')
  }

  test('each sequence gets the tokens that it gets alone', () => {
    const limits = fc.record({
      prefillChunk: fc.constantFrom(3, 16, 128),
      prefixCacheBytes: fc.constantFrom(0, 2 ** 22),
    })
    fc.assert(
      fc.property(fc.array(arrival, { minLength: 4, maxLength: 10, size: 'max' }), limits, (arrivals, chosen) => {
        const harness = new EngineHarness({ runner: demo.runner, limits: chosen })
        for (let step = 0; arrivals.some((_, i) => harness.endings(`s${i}`).length === 0); step++) {
          for (const [i, one] of arrivals.entries()) {
            if (one.atStep === step) {
              submit(harness, `s${i}`, one)
            }
          }
          harness.step()
          harness.clock++
          expect(step).toBeLessThan(2000)
        }
        emptySlots(harness)
        for (const [i, one] of arrivals.entries()) {
          expect(harness.endings(`s${i}`)).toMatchObject([{ kind: 'finished' }])
          expect(harness.tokenIds(`s${i}`)).toEqual(alone(one))
        }
      }),
      { numRuns: 12, seed: 20261124 },
    )
  })
})
