/**
 * Owns child processes: starts each in a process group of its own, says when one dies and starts it again, and ends
 * every group it started. Knows nothing of what the children do.
 */

import { type ChildProcess, spawn } from 'node:child_process'

export interface ChildSpec {
  name: string
  /** For this same Node: its flags, the file, the file's arguments. */
  argv: readonly string[]
  env: NodeJS.ProcessEnv
  /** Called with each whole line of stdout and stderr. */
  onLine: (line: string) => void
  /** Does this line say that the child serves? One that ends before it ever did is not started again. */
  isReady: (line: string) => boolean
  /** May this line of stderr say why the child ended? */
  isTrouble: (line: string) => boolean
}

export interface SuperviseOptions {
  log: (line: string) => void
  /** Called when a child ended before it was ever ready, with the last lines it wrote to stderr. */
  onFailedStart: (name: string, lastErrors: readonly string[]) => void
  /** Wait before the nth restart in a row of one child. */
  restartDelayMs: (restarts: number) => number
  /** How long a child may take to end after SIGTERM before its group gets SIGKILL. */
  graceMs: number
}

export interface Supervisor {
  start(spec: ChildSpec): void
  pid(name: string): number | undefined
  /** Ends one child as if it had died, so that it is started again. */
  kill(name: string): void
  /** Ends all children; resolves when every one is gone. */
  stop(): Promise<void>
}

interface Child {
  spec: ChildSpec
  process: ChildProcess
  restarts: number
  wasReady: boolean
  startedAt: number
  ended: Promise<void>
}

/** A child that ran this long before it died counts as healthy: its next restart is its first again. */
const HEALTHY_AFTER_MS = 10_000
/** Lines of stderr kept to say why a child ended. */
const LAST_ERRORS = 5

export function createSupervisor(options: SuperviseOptions): Supervisor {
  const children = new Map<string, Child>()
  let stopping = false

  function launch(spec: ChildSpec, restarts: number, wasReady = false): void {
    const child = spawn(process.execPath, spec.argv, {
      env: spec.env,
      // The IPC channel closes when this process dies, however it dies; children end themselves then.
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
      // A group of its own: Ctrl-C reaches only this process, and grandchildren (workerd) can be ended with the child.
      detached: true,
    })
    const ended = new Promise<void>((resolve) => {
      child.once('error', () => resolve())
      child.once('exit', () => resolve())
    })
    const entry: Child = { spec, process: child, restarts, wasReady, startedAt: performance.now(), ended }
    children.set(spec.name, entry)
    readLines(child.stdout, (line) => {
      entry.wasReady ||= spec.isReady(line)
      spec.onLine(line)
    })
    const lastErrors: string[] = []
    readLines(child.stderr, (line) => {
      if (spec.isTrouble(line)) {
        lastErrors.push(line)
        lastErrors.splice(0, lastErrors.length - LAST_ERRORS)
      }
      spec.onLine(line)
    })
    void ended.then(() => {
      killGroup(child, 'SIGKILL')
      if (stopping) {
        return
      }
      if (entry.wasReady) {
        revive(entry, lastErrors)
      } else {
        options.onFailedStart(spec.name, lastErrors)
      }
    })
  }

  function revive(entry: Child, lastErrors: readonly string[]): void {
    const healthy = performance.now() - entry.startedAt > HEALTHY_AFTER_MS
    const restarts = healthy ? 1 : entry.restarts + 1
    const { exitCode, signalCode } = entry.process
    options.log(`${entry.spec.name} ended (${signalCode ?? `exit code ${exitCode}`}); starting it again`)
    for (const line of lastErrors) {
      options.log(`${entry.spec.name}: ${line}`)
    }
    setTimeout(() => {
      if (!stopping) {
        launch(entry.spec, restarts, true)
      }
    }, options.restartDelayMs(restarts))
  }

  return {
    start: (spec) => launch(spec, 0),
    pid: (name) => children.get(name)?.process.pid,
    kill(name) {
      const child = children.get(name)
      if (child !== undefined) {
        killGroup(child.process, 'SIGKILL')
      }
    },
    async stop() {
      stopping = true
      await Promise.all(
        [...children.values()].map(async (child) => {
          if (child.process.exitCode === null && child.process.signalCode === null) {
            child.process.kill('SIGTERM')
          }
          const timer = setTimeout(() => killGroup(child.process, 'SIGKILL'), options.graceMs)
          await child.ended
          clearTimeout(timer)
          killGroup(child.process, 'SIGKILL')
        }),
      )
    },
  }
}

function killGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined) {
    return
  }
  try {
    process.kill(-child.pid, signal)
  } catch (error) {
    // ESRCH: the whole group is gone already, which is what was wanted.
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') {
      throw error
    }
  }
}

function readLines(stream: NodeJS.ReadableStream | null, onLine: (line: string) => void): void {
  let rest = ''
  stream?.setEncoding('utf8')
  stream?.on('data', (chunk: string) => {
    const lines = (rest + chunk).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines.filter((text) => text.trim() !== '')) {
      onLine(line)
    }
  })
}
