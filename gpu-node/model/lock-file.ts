/** A file that one process at a time holds; that of a process that died is taken over. */

import { readFileSync } from 'node:fs'
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'

const POLL_MS = 200

export interface LockOptions {
  signal: AbortSignal
  sleep?: (ms: number, signal: AbortSignal) => Promise<void>
}

/** Waits until it is free; returns what frees it. */
export async function lockFile(path: string, { signal, sleep = wait }: LockOptions): Promise<() => Promise<void>> {
  await mkdir(dirname(path), { recursive: true })
  for (;;) {
    signal.throwIfAborted()
    try {
      await writeFile(path, `${process.pid} ${startOf(process.pid)}`, { flag: 'wx' })
      return () => rm(path, { force: true })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') {
        throw error
      }
    }
    const [holder = 0, start = ''] = parse(await readFile(path, 'utf8').catch(() => ''))
    if (holder > 0 && !(isAlive(holder) && start === startOf(holder))) {
      await rm(path, { force: true })
    } else {
      await sleep(POLL_MS, signal)
    }
  }
}

function parse(text: string): [number?, string?] {
  const [pid, start] = text.split(' ')
  return [Number(pid), start]
}

/**
 * When a process started, where the system says so. In a container that starts anew the node has its predecessor's id: its lock
 * would look like its own.
 */
function startOf(pid: number): string {
  try {
    // The name before it, in brackets, may hold anything.
    const status = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return status.slice(status.lastIndexOf(')') + 2).split(' ')[19] ?? ''
  } catch {
    return ''
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    // Somebody else's process is alive too.
    return (error as NodeJS.ErrnoException).code === 'EPERM'
  }
}

async function wait(ms: number): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, ms))
}
