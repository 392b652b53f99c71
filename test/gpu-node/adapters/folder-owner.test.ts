import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { ownFolder } from '../../../gpu-node/adapters/store/folder-owner.ts'
import { temporaryDirectory } from '../../support/golden-fixtures.ts'

it('a folder has one owner at a time; the next may have it when the first has let go, once or twice', async () => {
  const { path, remove } = await temporaryDirectory()
  const release = await ownFolder(path)
  await expect(ownFolder(path)).rejects.toThrow(`${path} is in use by another node`)
  await release()
  await release()
  const again = await ownFolder(path)
  await again()
  await remove()
})

it('an owner that was killed owns nothing any more', async () => {
  const { path, remove } = await temporaryDirectory()
  const socket = join(path, 'owner.sock')
  const script = `require('node:net').createServer().listen(process.argv[1], () => console.log('owned'))`
  const owner = spawn(process.execPath, ['-e', script, socket], { stdio: ['ignore', 'pipe', 'inherit'] })
  await once(owner.stdout, 'data')
  await expect(ownFolder(path)).rejects.toThrow('in use')
  owner.kill('SIGKILL')
  await once(owner, 'exit')
  expect(existsSync(socket)).toBe(true)
  await (await ownFolder(path))()
  await remove()
})

it('a path too long for a socket is owned all the same', async () => {
  const { path, remove } = await temporaryDirectory()
  const long = join(path, 'x'.repeat(120))
  const release = await ownFolder(long)
  await expect(ownFolder(long)).rejects.toThrow('in use')
  await release()
  await remove()
})
