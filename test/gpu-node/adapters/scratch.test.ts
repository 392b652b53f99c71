import { afterAll, beforeAll, expect, it } from 'vitest'
import { runLoadJob } from '../../../gpu-node/adapters/loader/load-job.ts'
import { SCRATCH_BYTES, Scratch } from '../../../gpu-node/adapters/loader/scratch.ts'
import { WEIGHT_FILE_LIMITS } from '../../../gpu-node/adapters/raw-tensor.ts'
import { type Checkpoint, openCheckpoint } from '../../../gpu-node/model/checkpoint.ts'
import { adapterFiles, LLAMA_BASE, temporaryDirectory, writeFiles } from '../../support/golden-fixtures.ts'

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

const init = { baseDirectory: LLAMA_BASE, limits: WEIGHT_FILE_LIMITS }
const load = (directory: string, memory: Scratch) => runLoadJob({ kind: 'load', directory }, base, init, memory)

it('jobs one after another in the same memory give what each gives in its own', async () => {
  const cases = ['wide-r48', 'regex-r1', 'merge-a', 'merge-b', 'wide-r48']
  const memory = new Scratch()
  const together = []
  for (const [i, name] of cases.entries()) {
    const directory = await writeFiles(`${scratch.path}/${i}`, adapterFiles(name))
    together.push([await load(directory, memory), await load(directory, new Scratch())])
  }
  // Compared at the end: a later job must not have touched what an earlier one returned.
  for (const [shared, own] of together) {
    expect(shared).toEqual(own)
  }
})

it('a short file does not show what a longer one left there', async () => {
  const memory = new Scratch()
  await load(await writeFiles(`${scratch.path}/long`, adapterFiles('wide-r48')), memory)
  const files = { ...adapterFiles('merge-a'), 'adapter_model.safetensors': Buffer.from('abc') }
  const short = await writeFiles(`${scratch.path}/short`, files)
  await expect(load(short, memory)).rejects.toThrow(/8 bytes|outside the bounds/i)
})

it('gives places apart, within what it keeps; more is memory of its own', () => {
  const memory = new Scratch()
  for (let round = 0; round < 3; round++) {
    memory.reset()
    const [a, b] = [memory.allocate(100), memory.allocate(3)]
    a.fill(1)
    b.fill(2)
    expect([a.length, b.length, a[99], a.byteOffset % 8, b.byteOffset % 8]).toEqual([100, 3, 1, 0, 0])
    expect(a.buffer === b.buffer).toBe(round > 0)
  }
  memory.reset()
  expect(memory.allocate(SCRATCH_BYTES + 1)).toHaveLength(SCRATCH_BYTES + 1)
  memory.reset()
  expect(memory.allocate(1).buffer.byteLength).toBeLessThanOrEqual(SCRATCH_BYTES)
  memory.free()
  expect(memory.allocate(8)).toHaveLength(8)
})
