/** The door for nodes: `POST /fleet/heartbeat`, open to whoever signs with a join key, and to nobody else. */

import { Hono } from 'hono'
import { bodyLimit } from 'hono/body-limit'
import { RingletError } from '../../shared/errors.ts'
import {
  HEARTBEAT_PATH,
  HEARTBEAT_SIGNATURE_HEADER,
  type HeartbeatAnswer,
  heartbeatSchema,
} from '../../shared/fleet.ts'
import { readHeartbeatSignature, verifyHeartbeat } from '../../shared/heartbeat-signature.ts'
import type { SigningKeys } from '../../shared/hmac.ts'
import { keysVersion, sealKeys } from '../../shared/sealed-keys.ts'
import { type FleetRegistryBinding, reportHeartbeat } from './fleet-client.ts'

/** About 100,000 residents with ordinary names. */
const MAX_HEARTBEAT_BYTES = 16 * 1024 * 1024

export interface FleetRoutesOptions<E extends object> {
  joinKeys: (env: E) => SigningKeys
  /** Given to nodes that know the join secret alone. */
  ticketKeys: (env: E) => SigningKeys
  registry: (env: E) => FleetRegistryBinding
  now: () => number
}

export function fleetRoutes<E extends object>(options: FleetRoutesOptions<E>): Hono<{ Bindings: E }> {
  const app = new Hono<{ Bindings: E }>()
  const limit = bodyLimit({
    maxSize: MAX_HEARTBEAT_BYTES,
    onError: () => {
      throw new RingletError('body_too_large', `a heartbeat has at most ${MAX_HEARTBEAT_BYTES} bytes`)
    },
  })
  app.use(HEARTBEAT_PATH, async (c, next) => {
    const env = c.env as E
    if (c.req.method === 'POST') {
      readHeartbeatSignature(c.req.header(HEARTBEAT_SIGNATURE_HEADER), options.joinKeys(env), options.now())
    }
    await next()
  })
  app.post(HEARTBEAT_PATH, limit, async (c) => {
    const env = c.env as E
    const body = await c.req.text()
    const signature = c.req.header(HEARTBEAT_SIGNATURE_HEADER)
    const { sentAt, joinSecret } = await verifyHeartbeat(signature, body, options.joinKeys(env), options.now())
    const heartbeat = parseHeartbeat(body)
    const answer = await reportHeartbeat(options.registry(env), heartbeat, sentAt)
    const ticketKeys = await newTicketKeys(heartbeat.ticketKeysVersion, options.ticketKeys(env), joinSecret)
    return c.json(ticketKeys === undefined ? answer : ({ ...answer, ticketKeys } satisfies HeartbeatAnswer))
  })
  return app
}

/** `undefined`: the node has them, or wants none. */
async function newTicketKeys(known: string | undefined, keys: SigningKeys, joinSecret: string) {
  if (known === undefined || known === (await keysVersion(keys, joinSecret))) {
    return undefined
  }
  return sealKeys(keys, joinSecret)
}

/** Signed, but by a node that may be of another version: checked all the same. */
function parseHeartbeat(body: string) {
  let value: unknown
  try {
    value = JSON.parse(body)
  } catch (cause) {
    throw new RingletError('body_malformed', 'the heartbeat is no JSON', { cause })
  }
  const parsed = heartbeatSchema.safeParse(value)
  if (!parsed.success) {
    const issue = parsed.error.issues[0]
    const param = issue?.path.join('.') ?? ''
    throw new RingletError('field_invalid', `heartbeat field ${param}: ${issue?.message ?? 'invalid'}`, { param })
  }
  return parsed.data
}
