import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { baseWeightsOf } from '../../../gpu-node/adapters/base-weights.ts'
import { printReport } from '../../../gpu-node/adapters/load-report.ts'
import { inspectPeftAdapter, readPeftAdapter } from '../../../gpu-node/adapters/peft.ts'
import { type Checkpoint, openCheckpoint } from '../../../gpu-node/model/checkpoint.ts'
import { packAdapter } from '../../../gpu-node/model/pack-adapter.ts'
import {
  adapterFiles,
  LLAMA_ADAPTERS,
  LLAMA_BASE,
  temporaryDirectory,
  writeFiles,
} from '../../support/golden-fixtures.ts'
import { safetensorsFile, tensorsOf } from '../../support/safetensors-file.ts'

let base: Checkpoint
let scratch: { path: string; remove: () => Promise<void> }
let count = 0

beforeAll(async () => {
  base = await openCheckpoint(LLAMA_BASE)
  scratch = await temporaryDirectory()
})

afterAll(async () => {
  await base.close()
  await scratch.remove()
})

const golden = (name: string) => join(LLAMA_ADAPTERS, name)
const read = (directory: string) => readPeftAdapter(directory, base.spec, { baseWeights: baseWeightsOf(base) })

/** A golden adapter with a changed config and changed tensors, inspected. */
async function changed(
  name: string,
  config: Record<string, unknown>,
  edit: (tensors: ReturnType<typeof tensorsOf>) => void = () => undefined,
) {
  const files = adapterFiles(name)
  const before = JSON.parse(new TextDecoder().decode(files['adapter_config.json'])) as Record<string, unknown>
  const tensors = tensorsOf(files['adapter_model.safetensors']!)
  edit(tensors)
  const directory = await writeFiles(join(scratch.path, String(count++)), {
    'adapter_config.json': Buffer.from(JSON.stringify({ ...before, ...config })),
    'adapter_model.safetensors': safetensorsFile(tensors),
  })
  return inspectPeftAdapter(directory, base.spec, { baseWeights: baseWeightsOf(base), baseName: 'ringlet/golden' })
}

const Q0 = 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'

describe('reads what PEFT writes', () => {
  it.each(readdirSync(LLAMA_ADAPTERS))('%s', async (name) => {
    const { report } = await read(golden(name))
    expect(report).toMatchObject({
      accepted: true,
      problems: [],
      warnings: [],
      unmatchedTensors: [],
      missingModules: [],
    })
  })

  it('the same tensors are the same adapter in every file format, and in another dtype another one', async () => {
    const digest = async (name: string) => (await read(golden(name))).adapter.digest
    const same = await Promise.all(['all-r4', 'all-r4-infix', 'all-r4-bin', 'all-r4-bin-legacy'].map(digest))
    expect(new Set(same).size).toBe(1)
    const others = await Promise.all(['all-r4-bf16', 'all-r4-bin-half', 'merge-a'].map(digest))
    expect(new Set([...same, ...others]).size).toBe(4)
  })

  it('widens halves to the numbers that they are', async () => {
    const [full, half, bfloat] = await Promise.all(
      ['all-r4', 'all-r4-bin-half', 'all-r4-bf16'].map((name) => read(golden(name))),
    )
    for (const [i, module] of full!.adapter.modules.entries()) {
      const halved = half!.adapter.modules.find((it) => it.name === module.name)!
      const rounded = bfloat!.adapter.modules[i]!
      for (const [e, value] of module.loraA.entries()) {
        expect(Math.abs(halved.loraA[e]! - value)).toBeLessThanOrEqual(Math.abs(value) * 2 ** -11 + 2 ** -25)
        expect(Math.abs(rounded.loraA[e]! - value)).toBeLessThanOrEqual(Math.abs(value) * 2 ** -8)
      }
    }
  })

  it('ranks and alphas by pattern, layers by index', async () => {
    const { adapter } = await read(golden('patterns'))
    const of = (name: string) => adapter.modules.find((module) => module.name === name)!
    expect(of('model.layers.0.self_attn.q_proj')).toMatchObject({ rank: 2, scaling: 4 })
    expect(of('model.layers.2.self_attn.q_proj')).toMatchObject({ rank: 4, scaling: 2 })
    expect(of('model.layers.2.mlp.down_proj')).toMatchObject({ rank: 12, scaling: 0.25 })
    expect(adapter.modules.some((module) => module.name.includes('layers.1.'))).toBe(false)
    expect(adapter.maxRank).toBe(12)
  })

  it('rsLoRA’s scaling, DoRA’s magnitudes, biases of lora_B, saved heads, embeddings', async () => {
    expect((await read(golden('attention-r16-rslora'))).adapter.modules[0]!.scaling).toBe(4)
    expect((await read(golden('dora-r8'))).adapter.modules[0]!.magnitude).toHaveLength(32)
    expect((await read(golden('bias-lora-only'))).adapter.modules[0]!.loraBias).toHaveLength(64)
    expect((await read(golden('saves-head'))).adapter.savedModules).toMatchObject([{ name: 'lm_head' }])
    const names = (await read(golden('head-and-embedding'))).adapter.modules.map((module) => module.name)
    expect(names).toEqual(expect.arrayContaining(['lm_head', 'model.embed_tokens']))
  })
})

describe('refuses what it would not apply, with the numbers', () => {
  it.each<[string, Record<string, unknown>, RegExp]>([
    ['another rank in the config', { r: 16 }, /loraA is \[8,64\]; the base and the config need \[16,64\]/],
    ['a rank of zero', { r: 0 }, /r: /],
    ['another kind of adapter', { peft_type: 'IA3' }, /peft_type is "IA3"/],
    ['trained rows of the embedding', { trainable_token_indices: [1, 2] }, /"trainable_token_indices"/],
    ['bare parameters', { target_parameters: ['experts.w1'] }, /"target_parameters"/],
    ['replicated layers', { layer_replication: [[0, 2]] }, /"layer_replication"/],
    ['activated LoRA', { alora_invocation_tokens: [1] }, /"alora_invocation_tokens"/],
    ['a field from the future', { use_hyper: true }, /"use_hyper" is true: unknown here/],
    ['changed base weights', { init_lora_weights: 'pissa' }, /changed base weights/],
    [
      'a config for other modules',
      { target_modules: ['up_proj'] },
      /12 modules have tensors but the config does not name/,
    ],
    [
      'modules without tensors in some layers',
      { target_modules: ['q_proj', 'k_proj', 'v_proj', 'o_proj'], layers_to_transform: [0, 1] },
      /4 modules have tensors/,
    ],
    ['DoRA without magnitudes', { use_dora: true }, /no magnitude, but the config says use_dora/],
    ['lora_bias without biases', { lora_bias: true }, /no loraBias/],
    ['a saved head that is not there', { modules_to_save: ['lm_head'] }, /the file has no weight for it/],
    ['a scaling that is no number', { lora_alpha: 'x' }, /lora_alpha/],
    [
      'a pattern that never ends',
      { target_modules: '(a+)+$|(((\\w*)*)*)*!' },
      /patterns took more than|config does not name/,
    ],
    ['a pattern of unknown syntax', { target_modules: '(?#x)q_proj' }, /no counterpart/],
    ['an effect below float32', { lora_alpha: 1e-300 }, /zero effect: all 12 modules/],
    ['no effect', { lora_alpha: 0 }, /zero effect: all 12 modules/],
    ['a scaling that B does not bear', { lora_alpha: 1e300 }, /times the scaling 1.25e\+299: beyond single precision/],
  ])('%s', async (_, config, message) => {
    const { adapter, report } = await changed('merge-a', config)
    expect(adapter).toBeUndefined()
    expect(report.problems.join('\n')).toMatch(message)
  })

  it('DoRA’s magnitudes that the adapted weights do not bear', async () => {
    const { adapter } = await read(golden('dora-r8'))
    const [first, ...others] = adapter.modules
    // The rows of this base are about one long: some are shorter.
    const module = { ...first!, loraB: first!.loraB.map(() => 0), magnitude: first!.magnitude!.map(() => 3.4e38) }
    await expect(packAdapter({ ...adapter, modules: [module, ...others] }, base)).rejects.toThrow(
      /has a magnitude of 3.39.*e\+38 for output \d+, whose adapted weights are too small for it/,
    )
  })

  it('a tensor of no module, a missing half of a pair, a tensor twice', async () => {
    const stranger = await changed('merge-a', {}, (tensors) =>
      tensors.set('base_model.model.model.layers.9.x.lora_A.weight', tensors.get(Q0)!),
    )
    expect(stranger.report).toMatchObject({ accepted: false, unmatchedTensors: [expect.stringContaining('layers.9')] })
    const half = await changed('merge-a', {}, (tensors) => tensors.delete(Q0))
    expect(half.report.problems.join()).toMatch(/layers\.0\.self_attn\.q_proj has no loraA/)
    const twice = await changed('merge-a', {}, (tensors) =>
      tensors.set(Q0.replace('A.weight', 'A.other.weight'), tensors.get(Q0)!),
    )
    expect(twice.report.problems.join()).toMatch(/two tensors for loraA/)
  })

  it('one layer’s modules without tensors', async () => {
    const { report } = await changed('merge-a', {}, (tensors) => {
      for (const name of [...tensors.keys()].filter((key) => key.includes('layers.1.self_attn.q_proj'))) {
        tensors.delete(name)
      }
    })
    expect(report.problems.join()).toMatch(/layers\.1\.self_attn\.q_proj, but the file has no tensors/)
    expect(report.missingModules).toEqual(['model.layers.1.self_attn.q_proj'])
  })

  it('NaN and infinities, wherever they are', async () => {
    for (const [value, at] of [
      [Number.NaN, 0],
      [Number.POSITIVE_INFINITY, 511],
      [Number.NEGATIVE_INFINITY, 77],
    ] as const) {
      const { report } = await changed('merge-a', {}, (tensors) => {
        new DataView(tensors.get(Q0)!.bytes.buffer).setFloat32(at * 4, value, true)
      })
      expect(report.problems.join()).toContain(`loraA has ${value} at element ${at}`)
    }
  })

  it('an adapter of another base, by its dimensions; another name is a warning', async () => {
    const other = new Map([...base.spec.modules].map(([name, module]) => [name, { ...module, inFeatures: 128 }]))
    const { report } = await inspectPeftAdapter(golden('merge-a'), { modules: other, tiedHead: false })
    expect(report.problems.join()).toMatch(/\[8,64\]; the base and the config need \[8,128\]/)
    const named = await changed('merge-a', { base_model_name_or_path: 'meta/other' })
    expect(named.report).toMatchObject({
      accepted: true,
      warnings: ['trained on meta/other, served on ringlet/golden'],
    })
  })

  it('a retrained embedding beside LoRA on it, and a copy that can’t be compared', async () => {
    const copy = 'base_model.model.model.embed_tokens.base_layer.weight'
    const retrained = await changed('head-and-embedding', {}, (tensors) => {
      const view = new DataView(tensors.get(copy)!.bytes.buffer)
      view.setFloat32(400, view.getFloat32(400, true) + 0.01, true)
    })
    expect(retrained.report.problems.join()).toMatch(/differs from the base \(element 100/)
    const { report } = await inspectPeftAdapter(golden('head-and-embedding'), base.spec)
    expect(report.problems.join()).toMatch(/not at hand/)
  })

  it('biases that were trained along', async () => {
    const { report } = await changed('merge-a', { bias: 'lora_only' }, (tensors) =>
      tensors.set('base_model.model.model.layers.0.self_attn.q_proj.bias', {
        dtype: 'F32',
        shape: [64],
        bytes: new Uint8Array(256),
      }),
    )
    expect(report.problems.join()).toMatch(/bias trained along \(bias is 'lora_only'\)/)
  })
})

describe('names', () => {
  it('finds modules behind wrappers and multimodal levels', async () => {
    const { report } = await changed('merge-a', {}, (tensors) => {
      for (const [name, tensor] of [...tensors]) {
        tensors.delete(name)
        tensors.set(name.replace('base_model.model.model.', 'base_model.model._orig_mod.model.language_model.'), tensor)
      }
    })
    expect(report.accepted).toBe(true)
    expect(report.digest).toBe((await read(golden('merge-a'))).report.digest)
  })

  it('patterns of the config are for the names as the file has them', async () => {
    const level = 'model.language_model.layers'
    const { report } = await changed(
      'merge-a',
      {
        target_modules: String.raw`.*language_model.*\.[qkvo]_proj`,
        alpha_pattern: { [`${level}.0.self_attn.q_proj`]: 4, '^model.layers.1.self_attn.q_proj': 2 },
      },
      (tensors) => {
        for (const [name, tensor] of [...tensors]) {
          tensors.delete(name)
          tensors.set(name.replace('base_model.model.model.layers', `base_model.model.${level}`), tensor)
        }
      },
    )
    expect(report.problems).toEqual([])
    const scalings = report.modules.filter(({ scaling }) => scaling !== 2).map(({ name, scaling }) => [name, scaling])
    expect(scalings).toEqual([['model.layers.0.self_attn.q_proj', 0.5]])
  })

  it('a module that such a pattern names and the file lacks is missed', async () => {
    const { report } = await changed(
      'merge-a',
      { target_modules: String.raw`.*language_model.*\.[qkvo]_proj` },
      (tensors) => {
        for (const [name, tensor] of [...tensors]) {
          tensors.delete(name)
          if (!name.includes('layers.1.self_attn.q_proj')) {
            tensors.set(name.replace('base_model.model.', 'base_model.model.language_model.'), tensor)
          }
        }
      },
    )
    expect(report.problems.join()).toMatch(/the file has no tensors for 1 of them/)
  })

  it('prints a report that names ranks, modules and reasons', async () => {
    expect(printReport((await read(golden('patterns'))).report)).toMatch(
      /accepted[\s\S]*down_proj ×2[\s\S]*12 ×2, 4 ×7, 2 ×1/,
    )
    expect(printReport((await changed('merge-a', { r: 16 })).report)).toMatch(/REFUSED[\s\S]*problem/)
  })
})
