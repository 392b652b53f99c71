/** The processes of this machine with their command lines. */

import { readdir, readFile } from 'node:fs/promises'

export interface RunningProcess {
  pid: number
  /** Arguments joined by zero bytes, as in proc(5). */
  commandLine: string
}

/** Linux only, like everything that reads /proc. */
export async function listProcesses(): Promise<RunningProcess[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name))
  const found = await Promise.all(
    pids.map(async (pid) => ({
      pid: Number(pid),
      // A process may end between the listing and the read.
      commandLine: await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => ''),
    })),
  )
  return found.filter(({ commandLine }) => commandLine !== '')
}
