/**
 * One process a folder: two would remove what the other is writing. The owner listens on a socket in it, which ends with the
 * process however that ends; what a crash leaves answers nobody and is taken over.
 */

import { createHash } from 'node:crypto'
import { mkdir, realpath, rm } from 'node:fs/promises'
import { connect, createServer, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** Of a socket's path; the shortest that systems have is 104, with its end. */
const MAX_PATH_BYTES = 100

/** Returns the release, which may be called again. Throws where another process owns the folder. */
export async function ownFolder(directory: string): Promise<() => Promise<void>> {
  await mkdir(directory, { recursive: true, mode: 0o700 })
  const path = await socketPath(directory)
  let server = await listen(path)
  if (server === 'taken') {
    if (await answers(path)) {
      throw new Error(`${directory} is in use by another node; each needs a --state of its own`)
    }
    await rm(path, { force: true })
    server = await listen(path)
  }
  // A file system without sockets: then nothing is checked.
  const owned = typeof server === 'string' ? undefined : server
  return async () => {
    await new Promise<void>((resolve) => (owned?.listening ? owned.close(() => resolve()) : resolve()))
  }
}

async function socketPath(directory: string): Promise<string> {
  const inside = join(directory, 'owner.sock')
  if (Buffer.byteLength(inside) <= MAX_PATH_BYTES) {
    return inside
  }
  const name = createHash('sha256')
    .update(await realpath(directory))
    .digest('hex')
    .slice(0, 32)
  return join(tmpdir(), `ringlet-${name}.sock`)
}

function listen(path: string): Promise<Server | 'taken' | 'impossible'> {
  return new Promise((resolve) => {
    const server = createServer((socket) => socket.destroy())
    server.once('error', ({ code }: NodeJS.ErrnoException) => resolve(code === 'EADDRINUSE' ? 'taken' : 'impossible'))
    // It keeps no process alive.
    server.listen(path, () => resolve(server)).unref()
  })
}

function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path)
    socket.once('connect', () => {
      socket.destroy()
      resolve(true)
    })
    socket.once('error', () => resolve(false))
  })
}
