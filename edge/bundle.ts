/** The Worker as one module of JavaScript, for the local runtime; wrangler bundles by itself when it deploys. Runs in Node. */

import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

export async function bundleWorker(): Promise<string> {
  const result = await build({
    entryPoints: [fileURLToPath(new URL('./worker.ts', import.meta.url))],
    bundle: true,
    write: false,
    format: 'esm',
    target: 'es2022',
    conditions: ['workerd', 'worker', 'browser'],
    external: ['cloudflare:*', 'node:*'],
    loader: { '.html': 'text' },
    // Names of functions are kept as they are anyway; to insist on them costs a call at each closure that is made.
    keepNames: false,
    logLevel: 'silent',
  })
  return result.outputFiles[0]!.text
}
