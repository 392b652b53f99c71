/**
 * The node as plain JavaScript, so that none of its threads needs a TypeScript loader: less than half the start time and half the
 * memory. `tsx gpu-node/cli/bundle-node.ts` writes `dist/node/main.js`. Dependencies stay where they are.
 */

import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, readdir, rename, rm, stat, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { build } from 'esbuild'
import { PACKAGE_ROOT } from '../package-root.ts'

/** The process, its threads, and what threads import by name. All lands in one folder, so no two may be called the same. */
export const BUNDLE_ENTRIES = [
  'main.ts',
  'adapters/loader/loader-thread.ts',
  'adapters/loader/reader-thread.ts',
  'engine/engine-worker.ts',
  'grammar/grammar-mask-source.ts',
  'grammar/grammar-reader-thread.ts',
  'grammar/matcher-thread.ts',
  'model/device/device-part.ts',
  'model/runner/matrix-thread.ts',
  'model/runner/runner-part.ts',
  'text/encoding-thread.ts',
]

/**
 * V8's flags for a node: threads that hold little are to collect their garbage early. With 16 MiB, the default, each of them keeps
 * up to three times as much.
 */
export const NODE_FLAGS = ['--max-semi-space-size=2'] as const

const KEPT_MS = 7 * 24 * 60 * 60 * 1000

/**
 * Returns the file to run. It imports a folder named by its content, so that a node that runs keeps its own code when a newer
 * bundle is made; such folders go after a week.
 */
export async function bundleNode(out: string = join(PACKAGE_ROOT, 'dist/node')): Promise<string> {
  const { outputFiles } = await build({
    absWorkingDir: PACKAGE_ROOT,
    entryPoints: BUNDLE_ENTRIES.map((file) => ({ in: `gpu-node/${file}`, out: basename(file, '.ts') })),
    outdir: out,
    bundle: true,
    splitting: true,
    format: 'esm',
    platform: 'node',
    target: 'node20',
    packages: 'external',
    write: false,
    logLevel: 'error',
  })
  const files = outputFiles.map(({ path, contents }) => ({ name: basename(path), contents }))
  const hash = createHash('sha256')
  for (const { name, contents } of files.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    hash.update(name).update(contents)
  }
  const key = hash.digest('hex').slice(0, 16)
  const main = join(out, 'main.js')
  if (!existsSync(join(out, key))) {
    await removeOld(out)
    await put(join(out, key), async (path) => {
      await mkdir(path, { recursive: true })
      await Promise.all(files.map(({ name, contents }) => writeFile(join(path, name), contents)))
    })
  }
  await put(main, (path) => writeFile(path, `import './${key}/main.js'\n`))
  return main
}

/** Appears as a whole, or not at all where another process was first. */
async function put(path: string, write: (path: string) => Promise<void>): Promise<void> {
  const temporary = `${path}.${process.pid}`
  await write(temporary)
  try {
    await rename(temporary, path)
  } catch (error) {
    await rm(temporary, { recursive: true, force: true })
    if (!existsSync(path)) {
      throw error
    }
  }
}

async function removeOld(out: string): Promise<void> {
  await mkdir(out, { recursive: true })
  for (const name of await readdir(out)) {
    const path = join(out, name)
    const status = await stat(path).catch(() => undefined)
    if (status?.isDirectory() && Date.now() - status.mtimeMs > KEPT_MS) {
      await rm(path, { recursive: true, force: true })
    }
  }
}

if (import.meta.filename === process.argv[1]) {
  await bundleNode(process.argv[2])
}
