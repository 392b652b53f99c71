import { Buffer } from 'node:buffer'
import fc from 'fast-check'
import { zipSync } from 'fflate'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { inspectPeftAdapter } from '../../../gpu-node/adapters/peft.ts'
import { sharedBytes, type WeightFile, WeightFileError } from '../../../gpu-node/adapters/raw-tensor.ts'
import { parseWeightFile } from '../../../gpu-node/adapters/weight-file.ts'
import { type Checkpoint, openCheckpoint } from '../../../gpu-node/model/checkpoint.ts'
import { adapterFiles, LLAMA_BASE, temporaryDirectory, writeFiles } from '../../support/golden-fixtures.ts'
import { configOf, mutate, mutation } from './mutations.ts'

let base: Checkpoint
let scratch: { path: string; remove: () => Promise<void> }

beforeAll(async () => {
  base = await openCheckpoint(LLAMA_BASE)
  scratch = await temporaryDirectory()
})

afterAll(async () => {
  await base.close()
  await scratch.remove()
})

const LIMITS = { maxFileBytes: 2 ** 24, maxTensors: 1000 }

function parse(file: string, bytes: Uint8Array): Promise<WeightFile> {
  const shared = sharedBytes(bytes.length)
  shared.set(bytes)
  return parseWeightFile(file, shared, LIMITS)
}

describe('1,000 mutated files', () => {
  it('are read or refused with a typed error, quickly, and never as more than they are', async () => {
    let refused = 0
    await fc.assert(
      fc.asyncProperty(mutation, async (plan) => {
        const [name, bytes] = mutate(plan)
        const startedAt = performance.now()
        try {
          const file = await parse(name, bytes)
          const total = file.tensors.reduce((sum, tensor) => sum + tensor.bytes.byteLength, 0)
          expect(total).toBeLessThanOrEqual(2 * bytes.length)
        } catch (error) {
          expect(error).toBeInstanceOf(WeightFileError)
          refused++
        }
        expect(performance.now() - startedAt).toBeLessThan(2_000)
      }),
      { numRuns: 1_000, seed: 5 },
    )
    // The mutations do damage: a reader that accepts everything would pass the rest.
    expect(refused).toBeGreaterThan(300)
  })

  it('as whole adapters end in a report, never in anything else', async () => {
    let round = 0
    await fc.assert(
      fc.asyncProperty(mutation, async (plan) => {
        const [name, bytes] = mutate(plan)
        const directory = await writeFiles(`${scratch.path}/${round++}`, { ...configOf(plan), [name]: bytes })
        const { adapter, report } = await inspectPeftAdapter(directory, base.spec)
        expect(adapter === undefined).toBe(report.problems.length > 0)
      }),
      { numRuns: 150, seed: 6 },
    )
  })
})

describe('configs from strangers', () => {
  it('any JSON is a report', async () => {
    let round = 0
    await fc.assert(
      fc.asyncProperty(
        fc.oneof(
          fc.json(),
          fc
            .dictionary(fc.constantFrom('peft_type', 'r', 'target_modules', '__proto__', 'bias'), fc.jsonValue())
            .map((it) => JSON.stringify({ peft_type: 'LORA', ...it })),
        ),
        async (text) => {
          const directory = await writeFiles(`${scratch.path}/config-${round++}`, {
            ...adapterFiles('regex-r1'),
            'adapter_config.json': Buffer.from(text),
          })
          const { adapter, report } = await inspectPeftAdapter(directory, base.spec)
          expect(adapter === undefined).toBe(report.problems.length > 0)
        },
      ),
      { numRuns: 150, seed: 7 },
    )
    expect(({} as Record<string, unknown>).polluted).toBeUndefined()
  })
})

/** A pickle put together by hand. */
const pickle = (...parts: (string | number[])[]) =>
  Buffer.concat([
    Buffer.from([0x80, 2]),
    ...parts.map((part) => (typeof part === 'string' ? Buffer.from(part, 'latin1') : Buffer.from(part))),
    Buffer.from('.'),
  ])
const text = (value: string) => `X${String.fromCharCode(value.length, 0, 0, 0)}${value}`
const torchZip = (data: Uint8Array, storages: Record<string, Uint8Array> = {}, level: 0 | 9 = 0) =>
  zipSync(
    {
      'a/data.pkl': data,
      ...Object.fromEntries(Object.entries(storages).map(([key, bytes]) => [`a/data/${key}`, bytes])),
    },
    { level },
  )
const storage = (size: number, key = '0') =>
  `(${text('storage')}ctorch\nFloatStorage\n${text(key)}${text('cpu')}J${int(size)}tQ`
const int = (value: number) =>
  String.fromCharCode(value & 255, (value >> 8) & 255, (value >> 16) & 255, (value >> 24) & 255)
const tensor = (size: number, offset: number, shape: number[], strides: number[]) =>
  `ctorch._utils\n_rebuild_tensor_v2\n(${storage(size)}J${int(offset)}(${shape.map((it) => `J${int(it)}`).join('')}t(${strides.map((it) => `J${int(it)}`).join('')}t\x89ccollections\nOrderedDict\n)RtR`

/** Tuples of the tuple before, twice. */
const doubled = 'q\0h\0\x86'.repeat(40)

/** How torch's files before 1.6 begin. */
const legacyMagic = Buffer.from('80028a0a6cfc9c46f9206aa850192e', 'hex')

describe('bombs and traps by hand', () => {
  const floats = (count: number) => new Uint8Array(new Float32Array(count).map((_, i) => i).buffer)
  const one = (body: string, count: number, after = '') =>
    torchZip(pickle(`}${text('x')}${body}s${after}`), { '0': floats(count) })
  const described = tensor(6, 0, [2, 3], [3, 1])
  const MB = 2 ** 20

  it('a pickle that wants to run something is refused by name, and nothing runs', async () => {
    for (const [module, name] of [
      ['posix', 'system'],
      ['builtins', 'eval'],
      ['os', 'system'],
      ['torch', 'load'],
      ['torch._utils', '__class__'],
      ['torch', 'constructor'],
      ['collections', '__proto__'],
    ]) {
      const bytes = torchZip(pickle(`c${module}\n${name}\n(${text('echo x')}tR`))
      await expect(parse('adapter_model.bin', bytes)).rejects.toThrow(`refused pickle global ${module}.${name}`)
    }
  })

  it('a key that names a prototype is a key, and changes nothing else', async () => {
    const bytes = torchZip(pickle(`}(${text('__proto__')}${text('x')}u`))
    await expect(parse('adapter_model.bin', bytes)).rejects.toThrow(`'__proto__' in the state dict is no tensor`)
    expect(Object.getPrototypeOf(new Map())).toBe(Map.prototype)
  })

  it('an attribute of the state dict, as torch writes it, is passed over', async () => {
    const metadata = `}${text('_metadata')}ccollections\nOrderedDict\n)Rs`
    const bytes = one(tensor(6, 0, [2, 3], [3, 1]), 6, `${metadata}b`)
    expect((await parse('adapter_model.bin', bytes)).tensors.map(({ name }) => name)).toEqual(['x'])
  })

  it('a good tensor in the same form is read, with offsets and strides', async () => {
    const straight = await parse('adapter_model.bin', one(tensor(6, 0, [2, 3], [3, 1]), 6))
    expect([...new Float32Array(straight.tensors[0]!.bytes.slice().buffer)]).toEqual([0, 1, 2, 3, 4, 5])
    const transposed = await parse('adapter_model.bin', one(tensor(6, 0, [3, 2], [1, 3]), 6))
    expect([...new Float32Array(transposed.tensors[0]!.bytes.slice().buffer)]).toEqual([0, 3, 1, 4, 2, 5])
    const shifted = await parse('adapter_model.bin', one(tensor(6, 2, [2, 2], [2, 1]), 6))
    expect([...new Float32Array(shifted.tensors[0]!.bytes.slice().buffer)]).toEqual([2, 3, 4, 5])
  })

  it.each<[string, Uint8Array | (() => Uint8Array), RegExp]>([
    ['a tensor past its storage', () => one(tensor(6, 3, [2, 3], [3, 1]), 6), /reaches past its storage of 6/],
    [
      'a tensor that repeats one element a billion times',
      () => one(tensor(6, 0, [32768, 32768], [0, 0]), 6),
      /1073741824 elements on a storage of 6/,
    ],
    [
      'a storage smaller than its pickle says',
      () => one(tensor(1000, 0, [10], [1]), 6),
      /storage '0' has 24 bytes; its pickle says 4000/,
    ],
    [
      'a storage that is not there',
      () => torchZip(pickle(`}${text('x')}${tensor(6, 0, [6], [1])}s`)),
      /no entry for storage '0'/,
    ],
    ['a negative offset', () => one(tensor(6, -1, [2], [1]), 6), /malformed numbers/],
    [
      'a compressed entry that unpacks to a thousand times its size',
      () => torchZip(pickle(`}${text('x')}${tensor(2 ** 20, 0, [6], [1])}s`), { '0': new Uint8Array(2 ** 22) }, 9),
      /compressed/,
    ],
    [
      'two pickles',
      () => zipSync({ 'a/data.pkl': pickle('}'), 'b/data.pkl': pickle('}') }, { level: 0 }),
      /2 entries named data\.pkl/,
    ],
    [
      'a big-endian file',
      () => zipSync({ 'a/data.pkl': pickle('}'), 'a/byteorder': Buffer.from('big') }, { level: 0 }),
      /big-endian/,
    ],
    ['a state dict that is a list', () => torchZip(pickle(']')), /no state dict/],
    [
      'a tensor made of the pickle’s own dict',
      () => torchZip(pickle(`}${text('x')}}${text('strides')}]ss`)),
      /'x' in the state dict is no tensor/,
    ],
    // Spelt out, forty tuples of two tuples each have 2^40 words.
    [
      'a global named by tuples of tuples',
      () => torchZip(pickle(`${text('x')}${doubled}${text('y')}\x93`)),
      /refused pickle global whose name is no string/,
    ],
    [
      'a legacy protocol of tuples of tuples',
      () => Buffer.concat([legacyMagic, pickle(`${text('x')}${doubled}`)]),
      /legacy protocol is no number/,
    ],
    [
      'a tensor whose shape is changed after it was checked',
      () => one(`${described}}(${text('shape')}${text('abc')}ub`, 6),
      /gives attributes to what is no dict/,
    ],
    [
      'arguments that are said to be a hundred million',
      () => torchZip(pickle(`ccollections\nOrderedDict\n)}(${text('length')}J${int(100_000_000)}ubR`)),
      /gives attributes to what is no dict/,
    ],
    [
      'a number of 15 MB',
      () => torchZip(pickle(`\x8b${int(15 * MB)}${'Z'.repeat(15 * MB)}`)),
      /number has 15728640 bytes; the limit is 8/,
    ],
    ['15 million dicts', () => torchZip(pickle('}'.repeat(15 * MB))), /more than 500000 dicts, lists and tuples/],
    ['15 million marks', () => torchZip(pickle('('.repeat(15 * MB))), /more than 2000000 instructions/],
    ['tuples in tuples', () => torchZip(pickle(`]${'\x85'.repeat(MB)}`)), /more than 500000 dicts, lists and tuples/],
    ['a dict without a key for its value', () => torchZip(pickle('}(Nu')), /a key without a value/],
    ['a stack from which more is taken than it has', () => torchZip(pickle('(N(\x86')), /takes more from its stack/],
    ['a tuple without a mark', () => torchZip(pickle('Nt')), /there is none/],
    ['a value never remembered', () => torchZip(pickle('h\x05')), /remembers nothing under 5/],
    ['an instruction that makes objects', () => torchZip(pickle(')\x81')), /instruction 0x81 at byte 3/],
    ['a call of what is no function', () => torchZip(pickle('])R')), /calls what is no function/],
    ['a text beyond the end', () => torchZip(pickle(`X${int(1000)}x`)), /before the 1000 bytes/],
    ['a name that is no UTF-8', () => torchZip(pickle(`}X${int(1)}\xffNs`)), /no UTF-8/],
    ['an endless stack', () => torchZip(pickle('('.repeat(100_000))), /can't be read|no state dict/],
    [
      'more entries than tensors can be',
      () =>
        zipSync(Object.fromEntries(Array.from({ length: 1200 }, (_, i) => [`a/data/${i}`, new Uint8Array(1)])), {
          level: 0,
        }),
      /1200 entries; the limit is 1100/,
    ],
    ['no zip and no pickle', Buffer.from('#!/bin/sh\necho x\n'), /neither a zip nor a legacy file/],
    ['an empty file', new Uint8Array(0), /neither a zip nor/],
    [
      'a legacy file with another byte order',
      () =>
        Buffer.from(adapterFiles('all-r4-bin-legacy', 'adapter_model.bin')['adapter_model.bin']!).fill(0x89, 59, 60),
      /little-endian|can't be read/,
    ],
  ])('%s', async (_, bytes, message) => {
    await expect(parse('adapter_model.bin', typeof bytes === 'function' ? bytes() : bytes)).rejects.toThrow(message)
    await expect(parse('adapter_model.bin', typeof bytes === 'function' ? bytes() : bytes)).rejects.toBeInstanceOf(
      WeightFileError,
    )
  })

  it.each<[string, Buffer, RegExp]>([
    ['a header longer than the file', header(2n ** 40n, '{}'), /the header is said to have 1099511627776/],
    ['a header that is an array', header(2n, '[]'), /no JSON object/],
    [
      'overlapping tensors',
      header(
        undefined,
        JSON.stringify({
          a: { dtype: 'F32', shape: [2], data_offsets: [0, 8] },
          b: { dtype: 'F32', shape: [2], data_offsets: [4, 12] },
        }),
        12,
      ),
      /overlaps/,
    ],
    [
      'a shape beyond all memory',
      header(undefined, JSON.stringify({ a: { dtype: 'F32', shape: [2 ** 40, 2 ** 40], data_offsets: [0, 8] } }), 8),
      /needs/,
    ],
    [
      'an unknown dtype',
      header(undefined, JSON.stringify({ a: { dtype: 'F3', shape: [2], data_offsets: [0, 8] } }), 8),
      /dtype F3/,
    ],
    ['three bytes', Buffer.from('abc'), /starts with 8 bytes|outside the bounds/i],
  ])('safetensors: %s', async (_, bytes, message) => {
    await expect(parse('adapter_model.safetensors', bytes)).rejects.toThrow(message)
    await expect(parse('adapter_model.safetensors', bytes)).rejects.toBeInstanceOf(WeightFileError)
  })
})

function header(length: bigint | undefined, json: string, data = 0): Buffer {
  const prefix = Buffer.alloc(8)
  prefix.writeBigUInt64LE(length ?? BigInt(json.length))
  return Buffer.concat([prefix, Buffer.from(json), Buffer.alloc(data)])
}
