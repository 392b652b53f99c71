import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { describe, expect, test } from 'vitest'

const root = join(import.meta.dirname, '..')
const pages = [
  'README.md',
  'SECURITY.md',
  'CONTRIBUTING.md',
  ...readdirSync(join(root, 'docs')).map((name) => `docs/${name}`),
]
const scripts = Object.keys(
  (JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { scripts: Record<string, string> }).scripts,
)
const BUILT_IN = ['ci', 'start', 'test']

function all(text: string, pattern: RegExp): string[] {
  return [...text.matchAll(pattern)].map((match) => match[1] ?? '')
}

describe.each(pages)('%s', (page) => {
  const text = readFileSync(join(root, page), 'utf8')

  test('links to files and headings that are there', () => {
    const missing = all(text, /\]\(([^)\s]+)\)/g).filter((link) => {
      if (/^https?:/.test(link)) {
        return false
      }
      const [file = '', heading] = link.split('#')
      const target = file === '' ? page : join(dirname(page), file)
      return !existsSync(join(root, target)) || (heading !== undefined && !headings(target).includes(heading))
    })
    expect(missing).toEqual([])
  })

  test('names scripts of package.json', () => {
    const named = [...all(text, /npm run ([\w:-]+)/g), ...all(text, /npm (start|test|ci)\b/g)]
    expect(named.filter((name) => !scripts.includes(name) && !BUILT_IN.includes(name))).toEqual([])
  })

  test('names files and folders that are there', () => {
    const paths = all(text, /`((?:bench|docs|edge|gpu-node|models|shared|test)\/[\w./-]*)`/g)
    // A folder's own description may name files in it.
    expect(paths.filter((path) => !existsSync(join(root, path)))).toEqual([])
  })
})

/** As GitHub makes anchors of them. */
function headings(file: string): string[] {
  return all(readFileSync(join(root, file), 'utf8'), /^#+ (.+)$/gm).map((heading) =>
    heading
      .toLowerCase()
      .replace(/[^\w\- ]/g, '')
      .replaceAll(' ', '-'),
  )
}
