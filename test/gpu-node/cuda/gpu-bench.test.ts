import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'

const script = join(import.meta.dirname, '../../../bench/gpu.sh')
const run = promisify(execFile)

async function failure(args: string[]): Promise<{ code: number; stderr: string }> {
  const outcome = await run(script, args).then(
    () => ({ code: 0, stderr: '' }),
    (error: { code: number; stderr: string }) => error,
  )
  return { code: outcome.code, stderr: outcome.stderr.trim() }
}

test('the GPU bench runs on a processor and writes parity, steps and ratios', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'ringlet-bench-'))
  const out = join(folder, 'bench.json')
  const { stdout } = await run(script, ['--node', process.execPath, '--device', 'cpu', '--small', '--out', out])
  expect(stdout).toContain('parity gpt2: ok')
  const report = JSON.parse(await readFile(out, 'utf8'))
  expect(report.parity[0]).toMatchObject({ model: 'gpt2', ok: true })
  expect(report.sampling[0]).toMatchObject({ ok: true })
  expect(report.sampling[0].draws).toBeGreaterThan(report.sampling[0].wholeRows)
  expect(report.failed).toEqual([])
  expect(report.shapes[0].steps).toHaveLength(8)
  const values = Object.values(report.shapes[0].ratios as Record<string, { value: number }>)
  expect(values).toHaveLength(9)
  expect(values.every(({ value }) => Number.isFinite(value) && value > 0)).toBe(true)
  await rm(folder, { recursive: true })
})

test('a part that fails is named in the file, and the others are measured', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'ringlet-bench-'))
  const out = join(folder, 'bench.json')
  const args = ['--device', 'cpu', '--small', '--goldens', 'gpt2,nowhere', '--rounds', '2', '--out', out]
  expect((await failure(args)).code).toBe(5)
  const report = JSON.parse(await readFile(out, 'utf8'))
  expect(report.failed).toEqual([{ part: 'parity nowhere', error: expect.stringContaining('nowhere') }])
  expect(report.parity).toHaveLength(1)
  expect(report.shapes).toHaveLength(1)
  expect(report.gigabytesPerSecond).toBeGreaterThan(0)
  await rm(folder, { recursive: true })
})

test('it says in one line what is wrong with what it was given', async () => {
  expect(await failure(['--node', '/nowhere/node'])).toEqual({ code: 2, stderr: 'no Node binary: /nowhere/node' })
  const missing = await failure(['--small', '--cuda-dir', '/nowhere'])
  expect(missing.code).toBe(1)
  expect(missing.stderr).toMatch(/^'\/nowhere' has no libonnxruntime_providers_cuda\.so.*run npm run setup:cuda$/)
  expect((await failure(['--shapes', '70b'])).stderr).toBe('--shapes are of 1b, 7b, tiny; given: 70b')
  expect((await failure(['--device', 'auto'])).stderr).toBe('--device is cpu or cuda:N; given: auto')
})
