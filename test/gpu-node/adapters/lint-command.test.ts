import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, it } from 'vitest'
import { LLAMA_ADAPTERS, LLAMA_BASE } from '../../support/golden-fixtures.ts'

const ROOT = fileURLToPath(new URL('../../../', import.meta.url))

function lint(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  return new Promise((resolve) => {
    execFile(
      'node',
      ['--import', 'tsx', 'gpu-node/cli/ringlet.ts', 'lint', ...args],
      { cwd: ROOT },
      (error, out, err) => resolve({ code: error === null ? 0 : Number(error.code), out, err }),
    )
  })
}

it('prints the report of a good adapter and exits 0', async () => {
  const { code, out } = await lint(join(LLAMA_ADAPTERS, 'patterns'), '--base', LLAMA_BASE)
  expect(out).toMatch(/^accepted\n[\s\S]*ranks +12 ×2, 4 ×7, 2 ×1/)
  expect(code).toBe(0)
})

it('prints the reasons of a refusal as JSON and exits 1', async () => {
  const { code, out } = await lint(join(LLAMA_ADAPTERS, 'merge-a'), '--base', 'models/demo/base', '--json')
  expect(JSON.parse(out)).toMatchObject({
    accepted: false,
    problems: expect.arrayContaining([expect.stringContaining('[8,64]; the base and the config need [8,192]')]),
  })
  expect(code).toBe(1)
})

it('for people it prints the first reasons and how many more there are; a path that is no directory is said at once', async () => {
  const { code, out } = await lint(join(LLAMA_ADAPTERS, 'merge-a'), '--base', 'models/demo/base')
  expect(out).toMatch(/^REFUSED\n/)
  const problems = out.match(/^ {2}problem {4}/gm) ?? []
  expect(problems.length).toBeGreaterThan(0)
  expect(problems.length).toBeLessThanOrEqual(12)
  expect(code).toBe(1)
  expect(await lint('/nonexistent')).toMatchObject({
    code: 1,
    err: expect.stringContaining('ringlet: /nonexistent is no directory'),
  })
})
