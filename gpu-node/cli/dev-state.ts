/** Owns the state directory of `npm start`: the secrets of the local fleet and `dev.json`, what other programs read to find it. */

import { randomBytes } from 'node:crypto'
import { mkdir, readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'

const secretsSchema = z.object({
  adminToken: z.string().min(32),
  ticketSecret: z.string().min(32),
  joinSecret: z.string().min(32),
  routingSeed: z.string().min(32),
  saltSecret: z.string().min(32),
  /** Of the demo tenant; created by the edge, kept because the edge stores only its hash. */
  tenantToken: z.string().optional(),
})
export type DevSecrets = z.infer<typeof secretsSchema>

/** What `npm start` writes to `dev.json`. */
export interface DevJson {
  edgeUrl: string
  tenantToken: string
  adminToken: string
  nodes: { id: string; url: string; pid: number }[]
}

/** Reads the secrets of an earlier start, or makes new ones. */
export async function loadSecrets(stateDir: string): Promise<DevSecrets> {
  await mkdir(stateDir, { recursive: true })
  const file = join(stateDir, 'secrets.json')
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
      throw error
    }
    const fresh = {
      adminToken: `rladmin_${secret()}`,
      ticketSecret: secret(),
      joinSecret: secret(),
      routingSeed: secret(),
      saltSecret: secret(),
    }
    await saveSecrets(stateDir, fresh)
    return fresh
  }
  return secretsSchema.parse(JSON.parse(text))
}

export async function saveSecrets(stateDir: string, secrets: DevSecrets): Promise<void> {
  await writePrivate(join(stateDir, 'secrets.json'), secrets)
}

export async function writeDevJson(stateDir: string, content: DevJson): Promise<void> {
  await writePrivate(join(stateDir, 'dev.json'), content)
}

/** Of the last start, if there was one. */
export async function readEdgeUrl(stateDir: string): Promise<string | undefined> {
  try {
    return (JSON.parse(await readFile(join(stateDir, 'dev.json'), 'utf8')) as DevJson).edgeUrl
  } catch {
    return undefined
  }
}

function secret(): string {
  return randomBytes(32).toString('base64url')
}

/** Readable by its owner alone, and never seen half-written. */
async function writePrivate(file: string, content: object): Promise<void> {
  const part = `${file}.${process.pid}.part`
  await writeFile(part, `${JSON.stringify(content, null, 2)}\n`, { mode: 0o600 })
  await rename(part, file)
}
