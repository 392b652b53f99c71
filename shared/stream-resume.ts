/**
 * How a dropped stream is found again: its events' ids name the node that sent them, and that node tells the edge what it had
 * sent up to an event. The rest is then asked for as after a node's death, wherever there is room.
 */

import { z } from 'zod'
import { toBase64Url } from './base64url.ts'
import type { Delivered } from './ticket.ts'

/** One event of a stream, as its `id:` line says it: `<choice>:<count>:<token ids>:<node tag>`. */
export interface EventId {
  choice: number
  /** Tokens of this choice that the client has with this event. */
  count: number
  /** Those that are new with it. */
  tokenIds: number[]
  nodeTag: string | undefined
}

const EVENT_ID = /^(\d{1,3}):(\d{1,9}):([\d,]{0,65536})(?::([0-9a-z]{1,7}))?$/

export function parseEventId(text: string): EventId | undefined {
  const match = EVENT_ID.exec(text)
  if (match === null) {
    return undefined
  }
  const [, choice, count, ids = '', nodeTag] = match
  const tokenIds = ids === '' ? [] : ids.split(',').map(Number)
  return { choice: Number(choice), count: Number(count), tokenIds, nodeTag }
}

/**
 * FNV-1a of the node's id, in base 36: short, since every event carries it. It only says whom to ask, and a node answers about
 * the caller's own streams alone; nodes whose tags clash are both asked.
 */
export function nodeTag(nodeId: string): string {
  let hash = 0x811c9dc5
  for (const byte of new TextEncoder().encode(nodeId)) {
    hash = Math.imul(hash ^ byte, 0x01000193)
  }
  return (hash >>> 0).toString(36)
}

/** Of route and body: another request under the same id is not resumed. */
export async function streamFingerprint(route: string, body: unknown): Promise<string> {
  const bytes = new TextEncoder().encode(`${route}\n${JSON.stringify(body)}`)
  return toBase64Url(new Uint8Array(await crypto.subtle.digest('SHA-256', bytes)))
}

/** The edge asks a node here, with a ticket as for the stream itself. */
export const RESUME_PATH = '/streams/resume'

export const resumeQuestionSchema = z.object({
  fingerprint: z.string().max(64),
  lastEventId: z.string().max(8192),
})
export type ResumeQuestion = z.infer<typeof resumeQuestionSchema>

/** What must be the same for the same text to come, and what the client has of it. */
export interface ResumePoint {
  seed: number
  createdAt: number
  delivered: Delivered
  /** Of the adapter whose tokens these are; null for the base, and before any answered. */
  digest: string | null
}
