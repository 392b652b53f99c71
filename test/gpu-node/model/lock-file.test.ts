import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { lockFile } from '../../../gpu-node/model/lock-file.ts'

let folder: string
const path = () => join(folder, 'lock')
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'ringlet-lock-'))
})
afterEach(() => rmSync(folder, { recursive: true }))

/** Gives up at the first wait. */
function take(): Promise<() => Promise<void>> {
  const waited = new AbortController()
  const sleep = async () => waited.abort(new Error('held by another'))
  return lockFile(path(), { signal: waited.signal, sleep })
}

describe('a lock', () => {
  test('is held by one at a time, and free again afterwards', async () => {
    const unlock = await take()
    await expect(take()).rejects.toThrow('held by another')
    await unlock()
    expect(existsSync(path())).toBe(false)
    await (await take())()
  })

  test('of a process that is gone is taken over', async () => {
    // No process has an id beyond the system's most.
    writeFileSync(path(), '4194999 1')
    await (await take())()
  })

  test.runIf(process.platform === 'linux')(
    'of a process that had the same id before, as in a container that starts anew, is taken over',
    async () => {
      const unlock = await take()
      const mine = readFileSync(path(), 'utf8')
      expect(mine).toMatch(/^\d+ \d+$/)
      await unlock()
      writeFileSync(path(), `${process.pid} 1`)
      await (await take())()
    },
  )
})
