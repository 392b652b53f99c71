/**
 * Which content operators have pinned. Those pinned at run time are kept in `pins.json` beside the tiers, so that they hold
 * over restarts; what `--preload` names is pinned anew by each start and kept nowhere.
 */

import { mkdir, readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { ADAPTER_SOURCES, MERGE_STRATEGIES, SIGN_METHODS, selectionKey } from '../../../shared/adapter-ref.ts'
import type { AdaptedSelection } from '../adapter-store.ts'

const FILE = 'pins.json'

const refSchema = z.object({ source: z.enum(ADAPTER_SOURCES), id: z.string(), revision: z.string().optional() })
const selectionSchema = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('single'), ref: refSchema }),
  z.object({
    kind: z.literal('merge'),
    parts: z.array(z.object({ ref: refSchema, weight: z.number() })),
    strategy: z.enum(MERGE_STRATEGIES),
    density: z.number().optional(),
    signMethod: z.enum(SIGN_METHODS).optional(),
    seed: z.number().optional(),
  }),
])
const fileSchema = z.array(z.object({ digest: z.string().regex(/^[0-9a-f]{64}$/), selection: selectionSchema }))

export interface Pin {
  digest: string
  selection: AdaptedSelection
}

export class Pins {
  readonly #directory: string
  readonly #pins = new Map<string, { selection: AdaptedSelection; kept: boolean }>()
  #writing: Promise<void> = Promise.resolve()

  constructor(directory: string) {
    this.#directory = directory
  }

  /** A file that can't be read means no pins: they save time, and an operator sees in the list what is pinned. */
  static async open(directory: string): Promise<Pins> {
    const pins = new Pins(directory)
    const text = await readFile(join(directory, FILE), 'utf8').catch(() => '[]')
    for (const { digest, selection } of parse(text)) {
      // What the schema left out is absent, not undefined.
      pins.#pins.set(digest, { selection: JSON.parse(JSON.stringify(selection)) as AdaptedSelection, kept: true })
    }
    return pins
  }

  has(digest: string): boolean {
    return this.#pins.has(digest)
  }

  all(): Pin[] {
    return [...this.#pins].map(([digest, { selection }]) => ({ digest, selection }))
  }

  /** By digest, or by the spelling under which it was pinned. */
  find(name: string): string | undefined {
    return this.#pins.has(name) ? name : this.all().find(({ selection }) => selectionKey(selection) === name)?.digest
  }

  add({ digest, selection }: Pin, kept: boolean): Promise<void> {
    this.#pins.set(digest, { selection, kept: kept || this.#pins.get(digest)?.kept === true })
    return kept ? this.#save() : this.#writing
  }

  remove(digest: string): Promise<void> {
    const pin = this.#pins.get(digest)
    this.#pins.delete(digest)
    return pin?.kept ? this.#save() : this.#writing
  }

  /** One after the other: each writes what is pinned then. */
  #save(): Promise<void> {
    this.#writing = this.#writing
      .catch(() => undefined)
      .then(async () => {
        const kept = [...this.#pins]
          .filter(([, pin]) => pin.kept)
          .map(([digest, { selection }]) => ({ digest, selection }))
        const path = join(this.#directory, FILE)
        await mkdir(this.#directory, { recursive: true, mode: 0o700 })
        await writeFile(`${path}.new`, JSON.stringify(kept), { mode: 0o600 })
        await rename(`${path}.new`, path)
      })
    return this.#writing
  }
}

function parse(text: string): z.infer<typeof fileSchema> {
  try {
    return fileSchema.parse(JSON.parse(text))
  } catch {
    return []
  }
}
