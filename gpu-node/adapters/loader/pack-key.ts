/** What packing depends on besides the adapter: the base, the layout, and the code that packs. */

import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { AdapterLayout } from '../../model/packed-adapter.ts'

/** Everything that packing is made of lies in these; their text is a few hundred KB. The bundle has no such folders. */
const CODE = [new URL('../../model/', import.meta.url), new URL('../../ort/lora-kernel/', import.meta.url)]

/** Hex. Files packed under another key mean nothing to this process. */
export function packKey(baseDigest: string, layout: AdapterLayout): string {
  const hash = createHash('sha256').update(JSON.stringify([baseDigest, layout]))
  for (const path of codeFiles()) {
    hash.update(readFileSync(path))
  }
  return hash.digest('hex').slice(0, 32)
}

/** Of the bundle, whose files are all in one folder, all. */
function codeFiles(): string[] {
  const directories = CODE.map((url) => fileURLToPath(url)).filter((path) => existsSync(path))
  const files = directories.flatMap((directory) =>
    readdirSync(directory, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && entry.name.endsWith('.ts'))
      .map((entry) => `${entry.parentPath}/${entry.name}`),
  )
  return files.length > 0 ? files.sort() : bundleFiles(dirname(fileURLToPath(import.meta.url)))
}

function bundleFiles(directory: string): string[] {
  const names = readdirSync(directory).filter((name) => name.endsWith('.js'))
  return names.sort().map((name) => join(directory, name))
}
