import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { describe, expect, test } from 'vitest'

const root = resolve(import.meta.dirname, '..')

/** Every relative or package import of every TypeScript file below `folder`: `[file, imported]`, both from the root. */
function importsBelow(folder: string): [string, string][] {
  const files = readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.endsWith('.ts'),
  )
  return files.flatMap((name) => {
    const file = join(root, folder, name)
    const found = readFileSync(file, 'utf8').matchAll(/(?:from|import)\s*\(?\s*'([^']+)'/g)
    return [...found].map(([, target = '']): [string, string] => [
      relative(root, file),
      target.startsWith('.') ? relative(root, resolve(dirname(file), target)) : target,
    ])
  })
}

/** A way round for each import that closes one, depth first: empty where there is none. */
function importCycles(edges: readonly [string, string][]): string[] {
  const imported = new Map<string, string[]>()
  for (const [file, target] of edges) {
    imported.set(file, [...(imported.get(file) ?? []), target])
  }
  const done = new Set<string>()
  const cycles: string[] = []
  const visit = (file: string, path: readonly string[]): void => {
    const start = path.indexOf(file)
    if (start >= 0) {
      cycles.push([...path.slice(start), file].join(' → '))
    } else if (!done.has(file)) {
      for (const target of imported.get(file) ?? []) {
        visit(target, [...path, file])
      }
      done.add(file)
    }
  }
  for (const file of imported.keys()) {
    visit(file, [])
  }
  return cycles
}

describe('imports keep their directions', () => {
  test('shared imports itself and zod alone', () => {
    const strangers = importsBelow('shared').filter(([, target]) => !target.startsWith('shared/') && target !== 'zod')
    // The client reads event streams; edge and node never import it.
    const ofClient = ([file, target]: [string, string]) =>
      file.startsWith('shared/client/') && target.startsWith('eventsource-parser')
    expect(strangers.filter((found) => !ofClient(found))).toEqual([])
    const users = [...importsBelow('edge'), ...importsBelow('gpu-node')]
    expect(users.filter(([file, target]) => target.startsWith('shared/client/') && !file.includes('/cli/'))).toEqual([])
  })

  test('edge and gpu-node never import each other', () => {
    expect(importsBelow('edge').filter(([, target]) => target.startsWith('gpu-node/'))).toEqual([])
    expect(importsBelow('gpu-node').filter(([, target]) => target.startsWith('edge/'))).toEqual([])
  })

  test('koffi and pointers stay inside gpu-node/ort', () => {
    const users = importsBelow('gpu-node').filter(([, target]) => target === 'koffi')
    expect(users.filter(([file]) => !file.startsWith('gpu-node/ort/'))).toEqual([])
  })

  test('no file reaches itself through what it imports, types included', () => {
    const edges = ['edge', 'gpu-node', 'shared'].flatMap(importsBelow)
    expect(importCycles(edges)).toEqual([])
    expect(
      importCycles([
        ['a.ts', 'b.ts'],
        ['b.ts', 'c.ts'],
        ['c.ts', 'a.ts'],
      ]),
    ).toEqual(['a.ts → b.ts → c.ts → a.ts'])
  })

  test('only config.ts and the command line read the environment', () => {
    const readers = readdirSync(join(root, 'gpu-node'), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.ts') && name !== 'config.ts' && !name.startsWith('cli/'))
      .filter((name) => /process\.env/.test(readFileSync(join(root, 'gpu-node', name), 'utf8')))
    expect(readers).toEqual([])
  })
})
