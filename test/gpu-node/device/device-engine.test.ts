/** The engine on the device runner: more sequences than rows, more adapters than slots, chunks, prefixes and preemption. */

import { afterAll, describe, expect, test } from 'vitest'
import { openDeviceRunner } from '../../../gpu-node/model/device/open-device-runner.ts'
import { DEMO_ADAPTERS, DEMO_EOS, loadDemoModel } from '../../support/demo-model.ts'
import { EngineHarness, requestOf } from '../../support/engine-harness.ts'

const sizes = { maxRows: 5, maxPositions: 160, adapterSlots: 3 }

describe.each(['f32', 'f16'] as const)('the demo model on a device in %s', async (format) => {
  const demo = await loadDemoModel(sizes, (checkpoint) =>
    openDeviceRunner({
      checkpoint,
      format,
      target: { kind: 'cpu' },
      threads: 2,
      graphs: false,
      sizes: { maxRows: sizes.maxRows, maxPositions: sizes.maxPositions, maxChunk: 16, maxLogits: 8 },
      banks: { slots: sizes.adapterSlots, maxRank: 64 },
    }),
  )
  afterAll(() => demo.runner.dispose())

  test('base and all adapters in one batch generate what transformers generates for each alone', () => {
    const limits = { prefillChunk: 32, prefixBlock: 4, prefixCacheBytes: 2 ** 22, preemptAfterMs: 40 }
    const harness = new EngineHarness({ runner: demo.runner, limits })
    const variants = ['base', ...DEMO_ADAPTERS] as const
    const prompts = demo.golden.prompt_ids.slice(0, 3)
    // The second round finds the first one's prefixes.
    for (const round of [0, 1]) {
      for (const [i, prompt] of prompts.entries()) {
        for (const variant of variants) {
          const adapter = demo.adapters.get(variant)
          const digest = adapter === undefined ? {} : { adapterDigest: adapter.digest }
          const promptTokens = Int32Array.from(prompt)
          const tenantId = variant === 'pirate' ? 'a' : 'b'
          const wanted = { promptTokens, tenantId, eosTokens: [DEMO_EOS], maxNewTokens: 100, ...digest }
          harness.engine.submit(requestOf(`${variant} ${i} ${round}`, wanted), adapter)
        }
      }
      harness.runUntilIdle()
      for (const variant of variants) {
        for (const i of prompts.keys()) {
          const expected = demo.golden.greedy_ids[variant][i]
          expect(harness.tokenIds(`${variant} ${i} ${round}`), `${variant} ${i} ${round}`).toEqual(expected)
        }
      }
    }
    expect(harness.engine.stats().prefixHitTokens).toBeGreaterThan(0)
  })
})
