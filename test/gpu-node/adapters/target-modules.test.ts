import { describe, expect, it } from 'vitest'
import { parseAdapterConfig } from '../../../gpu-node/adapters/adapter-config.ts'
import { firstMatches, PatternError, toJavaScriptPattern } from '../../../gpu-node/adapters/python-regex.ts'
import { findScalings, findTargetModules } from '../../../gpu-node/adapters/target-modules.ts'
import type { BaseModule } from '../../../gpu-node/model/model-spec.ts'

const names = [
  'model.embed_tokens',
  ...[0, 1, 10].flatMap((layer) =>
    ['self_attn.q_proj', 'self_attn.v_proj', 'mlp.up_proj', 'mlp.experts.3.w1'].map(
      (it) => `model.layers.${layer}.${it}`,
    ),
  ),
  'lm_head',
]
const modules = new Map(
  names.map((name): [string, BaseModule] => [
    name,
    {
      name,
      kind: name.includes('embed') ? 'embedding' : 'linear',
      inFeatures: 4,
      outFeatures: 4,
      transposed: false,
    },
  ]),
)

const config = (fields: Record<string, unknown>) =>
  parseAdapterConfig(JSON.stringify({ peft_type: 'LORA', r: 4, lora_alpha: 8, ...fields })).config!
const targeted = (fields: Record<string, unknown>) => [...findTargetModules(config(fields), modules).targeted!]

describe('target_modules', () => {
  it('by the end of the name after a dot, or the whole name', () => {
    expect(targeted({ target_modules: ['q_proj'] })).toHaveLength(3)
    expect(targeted({ target_modules: ['proj'] })).toEqual([])
    expect(targeted({ target_modules: ['layers.1.self_attn.q_proj'] })).toEqual(['model.layers.1.self_attn.q_proj'])
    expect(targeted({ target_modules: ['lm_head', 'embed_tokens'] })).toEqual(['model.embed_tokens', 'lm_head'])
  })

  it('by a regular expression that must match the whole name', () => {
    expect(targeted({ target_modules: 'q_proj' })).toEqual([])
    expect(targeted({ target_modules: String.raw`.*layers\.1\..*(q|v)_proj` })).toHaveLength(2)
    expect(targeted({ target_modules: String.raw`.*\.q_proj|lm_head` })).toHaveLength(4)
    expect(targeted({ target_modules: String.raw`(?i).*\.Q_PROJ\Z` })).toHaveLength(3)
  })

  it('all-linear leaves out the head and embeddings', () => {
    expect(targeted({ target_modules: 'all-linear' })).toHaveLength(12)
  })

  it('exclude_modules and modules_to_save are never targeted', () => {
    expect(targeted({ target_modules: ['q_proj', 'v_proj'], exclude_modules: ['v_proj'] })).toHaveLength(3)
    expect(targeted({ target_modules: ['q_proj'], exclude_modules: String.raw`.*layers\.1\..*` })).toHaveLength(2)
    expect(targeted({ target_modules: ['q_proj', 'lm_head'], modules_to_save: ['lm_head'] })).toHaveLength(3)
    expect(findTargetModules(config({ modules_to_save: ['lm_head', 'score'] }), modules)).toMatchObject({
      targeted: undefined,
      saved: new Set(['lm_head']),
      unknownSaved: ['score'],
    })
  })

  it('layers_to_transform counts the first number in the name, with or without layers_pattern', () => {
    const fields = { target_modules: ['q_proj', 'w1'], layers_to_transform: [1] }
    expect(targeted(fields)).toEqual(['model.layers.1.self_attn.q_proj', 'model.layers.1.mlp.experts.3.w1'])
    expect(targeted({ ...fields, layers_to_transform: 10 })).toHaveLength(2)
    expect(targeted({ ...fields, layers_pattern: 'layers' })).toHaveLength(2)
    expect(targeted({ ...fields, layers_pattern: ['h', 'blocks'] })).toEqual([])
    expect(targeted({ ...fields, layers_to_transform: [] })).toHaveLength(6)
  })
})

describe('rank_pattern and alpha_pattern', () => {
  it('the first pattern that matches the end of the name counts', () => {
    const scalings = findScalings(
      config({
        rank_pattern: { 'layers\\.1\\.self_attn\\.q_proj': 2, q_proj: 8 },
        alpha_pattern: { 'model.layers.0.*': 32, '^q_proj': 1 },
      }),
      names,
    )
    expect(scalings.get('model.layers.1.self_attn.q_proj')).toEqual({ rank: 2, scaling: 4 })
    expect(scalings.get('model.layers.10.self_attn.q_proj')).toEqual({ rank: 8, scaling: 1 })
    expect(scalings.get('model.layers.0.self_attn.q_proj')).toEqual({ rank: 8, scaling: 4 })
    expect(scalings.get('model.layers.0.mlp.up_proj')).toEqual({ rank: 4, scaling: 8 })
    expect(scalings.get('lm_head')).toEqual({ rank: 4, scaling: 2 })
  })

  it('rsLoRA divides by the root of the module’s own rank', () => {
    const scalings = findScalings(config({ use_rslora: true, rank_pattern: { q_proj: 16 } }), names)
    expect(scalings.get('model.layers.0.self_attn.q_proj')!.scaling).toBe(2)
    expect(scalings.get('model.layers.0.self_attn.v_proj')!.scaling).toBe(4)
  })
})

describe('patterns from strangers', () => {
  it('are stopped when they take too long', () => {
    const startedAt = performance.now()
    expect(() => firstMatches(['(?:(?:a+)+)+b'], ['a'.repeat(60)])).toThrow(PatternError)
    expect(performance.now() - startedAt).toBeLessThan(5_000)
  })

  it('are translated from Python, or refused', () => {
    expect(toJavaScriptPattern(String.raw`(?P<a>x)(?P=a)\Z`)).toEqual({ source: String.raw`(?<a>x)\k<a>$`, flags: '' })
    for (const pattern of [
      '(?#note)a',
      'a++',
      'a{2}+',
      '(?i:a)',
      '(?m)^a',
      '(?x)a',
      '(?>a)',
      '(?<a>x)',
      '(a)\\1',
      'a\\',
    ]) {
      expect(() => toJavaScriptPattern(pattern), pattern).toThrow(PatternError)
    }
    expect(() => firstMatches(['(a'], ['a'])).toThrow(/no regular expression/)
  })

  it('match what they match in Python where both languages take them', () => {
    // [pattern, matches, does not], all seen with Python 3.11's re.fullmatch.
    const seen: [string, string, string][] = [
      [String.raw`layers\.\d{,1}\.q`, 'layers.1.q', 'layers.{,1}.q'],
      [String.raw`layers\.\d{,}`, 'layers.12', 'layers.a'],
      ['a{}b{x}', 'a{}b{x}', 'ab'],
      ['q[]x]', 'q]', 'q'],
      ['q[^]x]', 'qa', 'q]'],
      [String.raw`q[\]x]`, 'q]', 'q'],
      ['[(?P<+]+', '(?P<+', 'x'],
      [String.raw`a\++?`, 'a++', 'aa'],
      ['(?s)a.b', 'a\nb', 'ab'],
      [
        String.raw`(?:.*?(?:language|text).*?(?:attn|mlp).*?(?:q_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.mlp)`,
        'model.layers.12.mlp',
        'model.layers.x.mlp',
      ],
    ]
    for (const [pattern, matches, doesNot] of seen) {
      expect([pattern, ...firstMatches([pattern], [matches, doesNot])]).toEqual([pattern, 0, undefined])
    }
  })
})
