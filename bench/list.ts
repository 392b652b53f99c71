/** Lists the benches: each script's name and the first sentence of its header. */

import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

const folder = import.meta.dirname
const files = readdirSync(folder, { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.ts') && name !== 'list.ts')
  .sort()

console.log('npx tsx bench/<script>, on a quiet machine:\n')
for (const name of files) {
  const header = /^(?:#!.*\n)?\/\*\*[\s*]*([\s\S]*?)(?:\.\s|\*\/)/.exec(readFileSync(join(folder, name), 'utf8'))?.[1]
  // A file without a header is a part of another bench.
  if (header !== undefined) {
    console.log(`  ${name.padEnd(28)} ${header.replace(/\s*\n\s*\*\s*/g, ' ').trim()}`)
  }
}
