import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { parseSafetensorsHeader, readSafetensorsTensor } from '../../../gpu-node/formats/safetensors.ts'
import { type TensorToWrite, writeSafetensors } from '../../../gpu-node/formats/safetensors-writer.ts'
import { openCheckpoint } from '../../../gpu-node/model/checkpoint.ts'
import { ModelError } from '../../../gpu-node/model/model-error.ts'

const GOLDENS = new URL('../../fixtures/goldens/', import.meta.url).pathname
const DEMO = new URL('../../../models/demo/base', import.meta.url).pathname

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'ringlet-checkpoint-'))
})
afterEach(() => rmSync(folder, { recursive: true }))

/** A copy of a golden checkpoint that the test may spoil. */
function copyOf(name: string): string {
  cpSync(join(GOLDENS, name, 'base'), folder, { recursive: true })
  return folder
}

function readTensors(file: string): TensorToWrite[] {
  const bytes = readFileSync(file)
  const { tensors } = parseSafetensorsHeader(bytes, bytes.length)
  return [...tensors.values()].map(({ name, dtype, shape, begin, end }) => ({
    name,
    dtype,
    shape,
    bytes: bytes.subarray(begin, end),
  }))
}

const WEIGHTS = 'model.safetensors'

async function rewrite(change: (tensors: TensorToWrite[]) => TensorToWrite[]): Promise<void> {
  await writeSafetensors(join(folder, WEIGHTS), change(readTensors(join(folder, WEIGHTS))))
}

function editConfig(change: Record<string, unknown>): void {
  const path = join(folder, 'config.json')
  const config = JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>
  writeFileSync(path, JSON.stringify({ ...config, ...change }))
}

async function open(directory: string) {
  const checkpoint = await openCheckpoint(directory)
  await checkpoint.close()
  return checkpoint
}

describe('a checkpoint directory', () => {
  test.each(['llama', 'gpt2', 'phi3-longrope', 'gemma2', 'qwen3-moe'])('%s opens without a warning', async (name) => {
    const { spec } = await open(join(GOLDENS, name, 'base'))
    expect(spec.warnings).toEqual([])
    expect(spec).toMatchObject({ vocabSize: 256, hiddenSize: 64, bosToken: 1, eosTokens: [2], maxPositions: 256 })
  })

  test('of the demo model has every tensor, and its modules', async () => {
    const checkpoint = await openCheckpoint(DEMO)
    const { spec, decoder } = checkpoint
    expect(spec.modules.get('model.layers.0.mlp.down_proj')).toMatchObject({ inFeatures: 512, outFeatures: 192 })
    expect(spec.modules.get('model.embed_tokens')).toMatchObject({ kind: 'embedding', inFeatures: 1024 })
    expect(spec.modules.get('lm_head')).toMatchObject({ kind: 'linear', outFeatures: 1024 })
    expect(spec.modules.size).toBe(6 * 7 + 2)
    const bytes = readFileSync(join(DEMO, WEIGHTS))
    const { tensors } = parseSafetensorsHeader(bytes, bytes.length)
    const norm = decoder.finalNorm.weight
    expect(await checkpoint.readTensor(norm)).toEqual(readSafetensorsTensor(bytes, tensors.get(norm)!))
    expect(checkpoint.shape(norm)).toEqual([192])
    const part = await checkpoint.readPart(decoder.embedding.weight, 192, new Float32Array(192))
    expect(part).toEqual((await checkpoint.readTensor(decoder.embedding.weight)).subarray(192, 384))
    await expect(checkpoint.readTensor('lm_head.weight')).rejects.toThrow(/no tensor 'lm_head.weight'/)
    await expect(checkpoint.readPart(norm, 1, new Float32Array(192))).rejects.toThrow(/192 numbers; asked: 1 to 193/)
    await checkpoint.close()
  })

  test('serves fewer positions on request', async () => {
    const checkpoint = await openCheckpoint(DEMO, { maxPositions: 100 })
    expect(checkpoint.spec.maxPositions).toBe(100)
    expect(checkpoint.decoder.ropeTables[0]!.cos).toHaveLength(100 * 16)
    await checkpoint.close()
  })

  test('in shards equals the same in one file', async () => {
    const single = await openCheckpoint(join(GOLDENS, 'llama', 'base'))
    copyOf('llama')
    const tensors = readTensors(join(folder, WEIGHTS))
    rmSync(join(folder, WEIGHTS))
    const names = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'] as const
    await writeSafetensors(join(folder, names[0]), tensors.slice(0, 9))
    await writeSafetensors(join(folder, names[1]), tensors.slice(9))
    const weightMap = Object.fromEntries(tensors.map(({ name }, i) => [name, i < 9 ? names[0] : names[1]]))
    writeFileSync(join(folder, `${WEIGHTS}.index.json`), JSON.stringify({ metadata: {}, weight_map: weightMap }))
    const sharded = await openCheckpoint(folder)
    for (const { name } of tensors) {
      expect(await sharded.readTensor(name)).toEqual(await single.readTensor(name))
    }
    await Promise.all([single.close(), sharded.close()])
    rmSync(join(folder, names[1]))
    await expect(open(folder)).rejects.toThrow(/model-00002-of-00002.safetensors: ENOENT/)
  })

  test('of GPT-2 as first published lacks the prefix', async () => {
    copyOf('gpt2')
    const strip = (name: string) => name.replace('transformer.', '')
    await rewrite((tensors) => tensors.map((tensor) => ({ ...tensor, name: strip(tensor.name) })))
    const { spec } = await open(folder)
    expect(spec.warnings).toEqual([])
    expect(spec.modules.has('transformer.h.0.attn.c_attn')).toBe(true)
  })

  test('may keep all experts of a layer in one tensor', async () => {
    const apart = await openCheckpoint(join(GOLDENS, 'qwen3-moe', 'base'))
    copyOf('qwen3-moe')
    await rewrite(fuseExperts)
    const fused = await openCheckpoint(folder)
    for (const layer of fused.decoder.layers) {
      const expert = layer.mlp.kind === 'moe' ? layer.mlp.experts[5]! : undefined
      for (const { weight } of [expert!.gate, expert!.up, expert!.down]) {
        expect(await fused.readTensor(weight)).toEqual(await apart.readTensor(weight))
      }
    }
    expect(fused.spec.warnings).toEqual([])
    await Promise.all([apart.close(), fused.close()])
  })

  test('whose head is tied by the config but stored apart counts as the files say', async () => {
    copyOf('gemma2')
    const own = (tensors: TensorToWrite[], change: number) => {
      const embedding = tensors.find(({ name }) => name === 'model.embed_tokens.weight')!
      const bytes = Uint8Array.from(embedding.bytes)
      bytes[7]! ^= change
      return [...tensors, { ...embedding, name: 'lm_head.weight', bytes }]
    }
    await rewrite((tensors) => own(tensors, 0))
    expect((await open(folder)).spec).toMatchObject({ tiedHead: true, warnings: [] })
    await rewrite((tensors) => own(tensors.slice(0, -1), 1))
    const { spec, decoder } = await open(folder)
    expect(spec.warnings).toEqual([expect.stringMatching(/both and they differ: not tied/)])
    expect(spec.tiedHead).toBe(false)
    expect(decoder.head.weight).toBe('lm_head.weight')
  })

  test('ends at what generation_config.json says, else config.json', async () => {
    copyOf('llama')
    writeFileSync(join(folder, 'generation_config.json'), '{"eos_token_id": [2, 7]}')
    expect((await open(folder)).spec.eosTokens).toEqual([2, 7])
    rmSync(join(folder, 'generation_config.json'))
    expect((await open(folder)).spec.eosTokens).toEqual([2])
    editConfig({ eos_token_id: null, bos_token_id: null })
    expect((await open(folder)).spec).toMatchObject({ eosTokens: [], bosToken: undefined })
  })

  test('is told apart by config, by headers and by weights', async () => {
    copyOf('llama')
    const first = (await open(folder)).spec.baseDigest
    expect(first).toBe((await open(join(GOLDENS, 'llama', 'base'))).spec.baseDigest)
    await rewrite((tensors) => {
      const [head, ...rest] = tensors
      return [{ ...head!, bytes: head!.bytes.map((byte, i) => (i === 0 ? byte ^ 1 : byte)) }, ...rest]
    })
    const second = (await open(folder)).spec.baseDigest
    editConfig({ rms_norm_eps: 1e-5 })
    const third = (await open(folder)).spec.baseDigest
    expect(new Set([first, second, third]).size).toBe(3)
    expect(readdirSync(folder)).toHaveLength(3)
  })
})

describe('what is wrong is said in one line', () => {
  const cases: [string, () => void | Promise<void>, RegExp][] = [
    ['no directory', () => rmSync(join(folder, 'config.json')), /cannot read .*config.json: ENOENT/],
    ['no JSON', () => writeFileSync(join(folder, 'config.json'), '{'), /config.json is no JSON text/],
    ['no object', () => writeFileSync(join(folder, 'config.json'), '[]'), /config.json is no JSON object/],
    ['no weights', () => rmSync(join(folder, WEIGHTS)), /has neither model.safetensors nor model.safetensors.index/],
    ['weights cut short', () => truncateSync(join(folder, WEIGHTS), 200_000), /model.safetensors: .*the file has/],
    ['an unserved architecture', () => editConfig({ architectures: ['BertModel'] }), /architecture BertModel; served/],
    [
      'heads that the kernel does not take',
      () => editConfig({ head_dim: 24 }),
      /heads have 24 numbers; .* multiples of 16/,
    ],
    [
      'a missing tensor',
      () => rewrite((tensors) => tensors.filter(({ name }) => name !== 'lm_head.weight')),
      /lack the tensor 'lm_head.weight' \[256, 64\]/,
    ],
    [
      'a config for another size',
      () => editConfig({ intermediate_size: 96 }),
      /'model.layers.0.mlp.gate_proj.weight' \[128, 64\]; config.json means \[96, 64\]/,
    ],
    [
      'integer weights',
      () => rewrite((tensors) => tensors.map((it) => (it.name === 'model.norm.weight' ? { ...it, dtype: 'I32' } : it))),
      /'model.norm.weight' as I32/,
    ],
    [
      'an index that reaches out',
      () => {
        rmSync(join(folder, WEIGHTS))
        const index = { weight_map: { a: '../../etc/model.safetensors' } }
        writeFileSync(join(folder, `${WEIGHTS}.index.json`), JSON.stringify(index))
      },
      /names the file ".*etc.*"; shards are/,
    ],
  ]
  test.each(cases)('%s', async (_, spoil, message) => {
    copyOf('llama')
    await spoil()
    await expect(open(folder)).rejects.toThrow(message)
    const error: unknown = await open(folder).catch((reason: unknown) => reason)
    expect(error).toBeInstanceOf(ModelError)
    expect((error as Error).message).not.toContain('\n')
  })

  test('tensors and fields that nothing reads are listed, not fatal', async () => {
    copyOf('llama')
    editConfig({ some_new_field: 3 })
    await rewrite((tensors) => [
      ...tensors,
      { name: 'model.layers.0.self_attn.rotary_emb.inv_freq', dtype: 'F32', shape: [1], bytes: new Uint8Array(4) },
      { name: 'model.layers.0.self_attn.q_proj.bias', dtype: 'F32', shape: [1], bytes: new Uint8Array(4) },
    ])
    const { warnings } = (await open(folder)).spec
    expect(warnings).toEqual([
      'config.json has fields that nothing here reads: some_new_field',
      'the weight files have 1 tensors that the model does not use: model.layers.0.self_attn.q_proj.bias',
    ])
  })
})

/** experts.N.{gate,up,down}_proj.weight → experts.gate_up_proj `[experts, 2·inner, hidden]` and experts.down_proj. */
function fuseExperts(tensors: TensorToWrite[]): TensorToWrite[] {
  const isExpert = ({ name }: TensorToWrite) => /\.experts\.\d+\./.test(name)
  const fused = new Map<string, TensorToWrite[]>()
  const order = ['gate_proj', 'up_proj', 'down_proj']
  const place = (name: string) => {
    const [, layer, expert, matrix] = /^(.+)\.experts\.(\d+)\.(\w+)\.weight$/.exec(name)!
    return { layer: layer!, expert: Number(expert), matrix: matrix! }
  }
  const experts = tensors.filter(isExpert).sort((a, b) => {
    const [x, y] = [place(a.name), place(b.name)]
    return x.expert - y.expert || order.indexOf(x.matrix) - order.indexOf(y.matrix)
  })
  for (const tensor of experts) {
    const { layer, matrix } = place(tensor.name)
    const key = `${layer}.experts.${matrix === 'down_proj' ? 'down_proj' : 'gate_up_proj'}`
    fused.set(key, [...(fused.get(key) ?? []), tensor])
  }
  const join = (name: string, parts: TensorToWrite[]): TensorToWrite => {
    const [rows, columns] = parts[0]!.shape as [number, number]
    const shape = name.endsWith('down_proj') ? [parts.length, rows, columns] : [parts.length / 2, 2 * rows, columns]
    return { name, dtype: parts[0]!.dtype, shape, bytes: Buffer.concat(parts.map(({ bytes }) => bytes)) }
  }
  return [...tensors.filter((tensor) => !isExpert(tensor)), ...[...fused].map(([name, parts]) => join(name, parts))]
}
