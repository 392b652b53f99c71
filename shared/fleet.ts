/** What nodes tell the edge about themselves. Signed like a ticket: HMAC-SHA256 over time and body, with the join secret. */

import { z } from 'zod'

/** A node reports this often; one silent for three intervals leaves the ring. */
export const HEARTBEAT_INTERVAL_MS = 2_000
/** `<key id>.<unix ms>.<base64url HMAC over "<unix ms>.<body>">`; older than 30 s is refused. */
export const HEARTBEAT_SIGNATURE_HEADER = 'x-ringlet-signature'
/** On each reply of a node: sequences in flight there, this request's included. The edge keeps it and strips it. */
export const NODE_LOAD_HEADER = 'x-ringlet-load'
/** Nodes POST here. Header `x-ringlet-signature`; answer `{ accepted: true }` or an error body. */
export const HEARTBEAT_PATH = '/fleet/heartbeat'

export const ADAPTER_TIERS = ['remote', 'disk', 'ram', 'engine'] as const
export type AdapterTier = (typeof ADAPTER_TIERS)[number]

/** Entries of a heartbeat's list; one for each name of a content. */
export const MAX_RESIDENTS = 100_000

export const residentAdapterSchema = z.object({
  /** `formatAdapterRef` of the ref with its exact revision, or a merge's `selectionKey`. */
  ref: z.string().max(8192),
  digest: z.string().max(128),
  tier: z.enum(ADAPTER_TIERS),
})
export type ResidentAdapter = z.infer<typeof residentAdapterSchema>

export const heartbeatSchema = z.object({
  nodeId: z.string().min(1).max(128),
  /** Where the edge reaches the node, e.g. `http://127.0.0.1:8081`. */
  url: z.url(),
  region: z.string().max(64).default(''),
  /** The name under which clients ask for the base model. */
  baseModel: z.string().max(512),
  /** Digest of the base checkpoint; nodes of one ring must agree. */
  baseDigest: z.string().max(128),
  dtype: z.string().max(16),
  /** Sequences that can run at once. */
  maxSequences: z.number().int().positive(),
  /** Prompt and generated tokens together, most per sequence. */
  maxPositions: z.number().int().positive(),
  /** Sequences accepted and not yet ended, those that wait included. */
  inFlight: z.number().int().nonnegative(),
  /** Of these, the ones that wait for a row. */
  queued: z.number().int().nonnegative(),
  draining: z.boolean(),
  /** `leaving: true` is the node's last word: it leaves the ring at once. */
  leaving: z.boolean().default(false),
  /** Random per process: a restart under the same id is told from a flap. */
  bootId: z.string().max(64),
  /** Absent: unchanged since the list that was sent with the same `bootId` and `residentVersion`. */
  resident: z.array(residentAdapterSchema).max(MAX_RESIDENTS).optional(),
  /** Raised by the sender with every change of `resident`. */
  residentVersion: z.number().int().nonnegative().default(0),
  /** `keysVersion` of the ticket keys that the edge gave it, empty for none yet. Absent: it was configured with its own. */
  ticketKeysVersion: z.string().max(64).optional(),
})
export type Heartbeat = z.infer<typeof heartbeatSchema>

/** What the edge answers to an accepted heartbeat. */
export interface HeartbeatAnswer {
  accepted: true
  /** The edge does not know the list that `residentVersion` names: send it now. */
  wantResident: boolean
  /** An operator drains this node: no new requests come; it may leave when nothing is in flight. */
  draining: boolean
  /** `sealKeys` of the edge's ticket keys, when the node asked for them and has others. */
  ticketKeys?: string
}
