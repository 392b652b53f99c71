// What bench/gpu.sh is asked for.

import { availableParallelism } from 'node:os'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { parseDevice } from '../../gpu-node/device-choice.ts'
import type { DeviceFormat } from '../../gpu-node/model/device/device-form.ts'
import type { Shape } from '../random-base.ts'

const SHAPES: Record<string, Shape> = {
  // Llama 3.2 1B.
  '1b': { layers: 16, hidden: 2048, heads: 32, kvHeads: 8, headSize: 64, inner: 8192, vocab: 128_256, positions: 512 },
  // Llama 2 7B.
  '7b': {
    layers: 32,
    hidden: 4096,
    heads: 32,
    kvHeads: 32,
    headSize: 128,
    inner: 11_008,
    vocab: 32_000,
    positions: 512,
  },
  tiny: { layers: 2, hidden: 64, heads: 4, kvHeads: 2, headSize: 16, inner: 96, vocab: 512, positions: 96 },
}

export interface GpuBenchSettings {
  device: { kind: 'cpu' } | { kind: 'cuda'; deviceId: number }
  cudaFolder: string
  out: string
  shapes: { name: string; shape: Shape }[]
  dtype: DeviceFormat
  threads: number
  rounds: number
  batches: number[]
  /** Tokens of a prompt and of its reply. */
  lengths: [prompt: number, reply: number]
  slots: number
  rank: number
  goldens: string[]
  graphs: boolean
}

/** `--small`: what a processor does in seconds, so that the bench itself is tested. */
export function readSettings(argv: readonly string[]): GpuBenchSettings {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      device: { type: 'string', default: 'cuda:0' },
      'cuda-dir': { type: 'string', default: join(import.meta.dirname, '../../.ort') },
      out: { type: 'string', default: 'gpu-bench.json' },
      shapes: { type: 'string' },
      dtype: { type: 'string' },
      rounds: { type: 'string' },
      goldens: { type: 'string' },
      'no-cuda-graphs': { type: 'boolean', default: false },
      small: { type: 'boolean', default: false },
    },
  })
  const choice = parseDevice(values.device)
  if (choice.kind === 'auto' || (choice.kind === 'cuda' && choice.deviceIds.length > 1)) {
    throw new Error(`--device is cpu or cuda:N; given: ${values.device}`)
  }
  const { small } = values
  const names = (values.shapes ?? (small ? 'tiny' : '1b,7b')).split(',')
  const dtype = values.dtype ?? (choice.kind === 'cpu' ? 'f32' : 'f16')
  if (dtype !== 'f16' && dtype !== 'bf16' && dtype !== 'f32' && dtype !== 'int8' && dtype !== 'int4') {
    throw new Error(`--dtype is f16, bf16, f32, int8 or int4; given: ${dtype}`)
  }
  return {
    device: choice.kind === 'cpu' ? choice : { kind: 'cuda', deviceId: choice.deviceIds[0]! },
    cudaFolder: resolve(values['cuda-dir']),
    out: resolve(values.out),
    shapes: names.map((name) => {
      const shape = SHAPES[name]
      if (shape === undefined) {
        throw new Error(`--shapes are of ${Object.keys(SHAPES).join(', ')}; given: ${name}`)
      }
      return { name, shape }
    }),
    dtype,
    threads: choice.kind === 'cpu' ? Math.min(2, availableParallelism()) : 1,
    rounds: wholeNumber('--rounds', values.rounds ?? (small ? '3' : '30')),
    batches: small ? [1, 4] : [1, 8, 32],
    lengths: small ? [8, 8] : [128, 128],
    slots: small ? 8 : 64,
    rank: small ? 4 : 16,
    goldens: (values.goldens ?? (small ? 'gpt2' : 'llama,gemma2,gpt2,phi3-longrope,qwen3-moe')).split(','),
    graphs: choice.kind === 'cuda' && !values['no-cuda-graphs'],
  }
}

function wholeNumber(option: string, text: string): number {
  const value = Number(text)
  if (!Number.isInteger(value) || value < 1) {
    throw new Error(`${option} is a whole number from 1; given: ${text}`)
  }
  return value
}
