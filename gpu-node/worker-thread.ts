/** Starts a worker thread from a TypeScript file (through tsx) or a built JavaScript file, the same on every supported Node. */

import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { Worker, type WorkerOptions } from 'node:worker_threads'

/** `file`: `new URL('./x.ts', import.meta.url)`. */
export function startWorkerThread(file: URL, options: WorkerOptions = {}): Worker {
  return new Worker(file.pathname.endsWith('.ts') ? withTypeScript(file) : file, options)
}

/**
 * A module that registers tsx in the new thread and goes on with `file`: on Node 20 `--import tsx` has no effect in worker
 * threads. tsx is named by its path, as the thread's own directory says nothing about where it is installed.
 */
function withTypeScript(file: URL): URL {
  const commonJs = createRequire(import.meta.url).resolve('tsx/esm/api')
  // require.resolve finds the CommonJS twin, whose own loader path is wrong in a thread.
  const tsx = pathToFileURL(join(dirname(commonJs), 'index.mjs')).href
  const code = `import { register } from ${JSON.stringify(tsx)}; register(); await import(${JSON.stringify(file.href)})`
  return new URL(`data:text/javascript,${encodeURIComponent(code)}`)
}
