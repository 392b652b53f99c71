/** Keys for a node that was started by hand: those of the edge's state directory, made if there are none. */

import { randomBytes } from 'node:crypto'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { z } from 'zod'
import type { SigningKeys } from '../shared/hmac.ts'

const fileSchema = z.object({ RINGLET_TICKET_KEYS: z.string(), RINGLET_JOIN_KEYS: z.string() })

export interface LocalKeys {
  ticketKeys: SigningKeys
  joinKeys: SigningKeys
}

/** `file` is the one that `npm run dev:edge` keeps; whoever comes first makes it. */
export async function readLocalKeys(file: string): Promise<LocalKeys> {
  await mkdir(dirname(file), { recursive: true })
  const secret = () => randomBytes(32).toString('base64url')
  const fresh = {
    RINGLET_ADMIN_TOKEN: secret(),
    RINGLET_ROUTING_SEED: secret(),
    RINGLET_SALT_SECRET: secret(),
    RINGLET_TICKET_KEYS: `k1:${secret()}`,
    RINGLET_JOIN_KEYS: `k1:${secret()}`,
  }
  await writeFile(file, `${JSON.stringify(fresh, null, 2)}\n`, { mode: 0o600, flag: 'wx' }).catch(
    (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') {
        throw error
      }
    },
  )
  const kept = fileSchema.parse(JSON.parse(await readFile(file, 'utf8')))
  return { ticketKeys: toKeys(kept.RINGLET_TICKET_KEYS), joinKeys: toKeys(kept.RINGLET_JOIN_KEYS) }
}

function toKeys(text: string): SigningKeys {
  return {
    keys: text.split(',').map((entry) => {
      const colon = entry.indexOf(':')
      return { id: entry.slice(0, colon), secret: entry.slice(colon + 1) }
    }),
  }
}
