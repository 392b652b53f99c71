/** Starts worker threads, from the sources through tsx or from the bundle (cli/bundle-node.ts), the same on every supported Node. */

import { createRequire } from 'node:module'
import { basename, dirname, join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { Worker, type WorkerOptions } from 'node:worker_threads'

/** In the bundle every module lies in one folder. */
const BUNDLED = import.meta.url.endsWith('.js')

/** `file`: `new URL('./x.ts', import.meta.url)`. */
export function startWorkerThread(file: URL, options: WorkerOptions = {}): Worker {
  return new Worker(BUNDLED ? bundled(file) : withTypeScript(file), options)
}

/** A module for a thread to import by its address. */
export function threadModule(file: URL): string {
  return (BUNDLED ? bundled(file) : file).href
}

function bundled(file: URL): URL {
  return new URL(`./${basename(file.pathname, '.ts')}.js`, import.meta.url)
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
