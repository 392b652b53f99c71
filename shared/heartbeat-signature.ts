/** The signature on a heartbeat: what lets a node into the ring. Header `x-ringlet-signature: <key id>.<unix ms>.<code>`. */

import { RingletError } from './errors.ts'
import { type SigningKeys, signText, verifyText } from './hmac.ts'

/** A heartbeat's clock may differ this much from the edge's; it is also how long one could be replayed. */
export const MAX_HEARTBEAT_SKEW_MS = 30_000

export async function signHeartbeat(body: string, keys: SigningKeys, now: number): Promise<string> {
  const key = keys.keys[0]
  if (key === undefined) {
    throw new RingletError('internal', 'no join key is configured')
  }
  return `${key.id}.${now}.${await signText(`${now}.${body}`, key.secret)}`
}

export interface VerifiedHeartbeat {
  /** Unix milliseconds by the node's clock. */
  sentAt: number
  /** Of the join key that signed it. */
  joinSecret: string
}

/** What the header says by itself; throws where no body could make it good, so that none need be read. */
export function readHeartbeatSignature(header: string | null | undefined, keys: SigningKeys, now: number) {
  const [keyId, sentAtText, code, ...rest] = (header ?? '').split('.')
  if (keyId === undefined || sentAtText === undefined || code === undefined || rest.length > 0) {
    throw new RingletError('ticket_invalid', 'the heartbeat is not signed')
  }
  const key = keys.keys.find((candidate) => candidate.id === keyId)
  if (key === undefined || !/^\d{1,16}$/.test(sentAtText)) {
    throw unknownKey()
  }
  const sentAt = Number(sentAtText)
  if (Math.abs(now - sentAt) > MAX_HEARTBEAT_SKEW_MS) {
    const seconds = Math.round((now - sentAt) / 1000)
    throw new RingletError(
      'ticket_expired',
      `the node's clock and the edge's differ by ${seconds} s; most allowed: ${MAX_HEARTBEAT_SKEW_MS / 1000} s`,
    )
  }
  return { key, sentAt, sentAtText, code }
}

/** Throws when the heartbeat is not signed with a join key. */
export async function verifyHeartbeat(
  header: string | null | undefined,
  body: string,
  keys: SigningKeys,
  now: number,
): Promise<VerifiedHeartbeat> {
  const { key, sentAt, sentAtText, code } = readHeartbeatSignature(header, keys, now)
  if (!(await verifyText(`${sentAtText}.${body}`, code, key.secret))) {
    throw unknownKey()
  }
  return { sentAt, joinSecret: key.secret }
}

function unknownKey(): RingletError {
  return new RingletError('ticket_invalid', 'the heartbeat is not signed with a known join key')
}
