/** Which of a node's headers reach the client. */

import { NODE_LOAD_HEADER } from '../../shared/fleet.ts'
import type { Connection } from './attempt.ts'

/** Hop by hop (RFC 9110 §7.6.1), or true only of the node's own bytes. */
const DROPPED = new Set<string>([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
  'content-length',
  'content-encoding',
  'set-cookie',
  NODE_LOAD_HEADER,
  'date',
  'server',
])

export function responseHeaders({ route, response }: Connection): Headers {
  const headers = new Headers()
  for (const [name, value] of response.headers) {
    if (!DROPPED.has(name)) {
      headers.set(name, value)
    }
  }
  headers.set('x-ringlet-node', route.node.nodeId)
  return headers
}
