/** The node's HTTP server: listens at once, serves when the node is ready, ends when the last reply has gone out. */

import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { getRequestListener } from '@hono/node-server'
import { RingletError } from '../../shared/errors.ts'
import { apiOf, errorResponse } from './error-reply.ts'

/** `x-ringlet-delivered` holds the ids of a long stream. */
const MAX_HEADER_BYTES = 256 * 1024
/** The edge keeps connections; longer than its own idle time, so that it is the one that closes them. */
const KEEP_ALIVE_MS = 65_000

export type Serve = (request: Request) => Response | Promise<Response>

export interface NodeServer {
  readonly url: string
  /** Until it is called every request gets 503. */
  serve(handler: Serve): void
  /** No new connections; resolves when the open ones have ended, those that have not after `graceMs` by being cut. */
  close(graceMs: number): Promise<void>
}

/** Throws an error whose message is for the operator when the port is taken. */
export async function listen(host: string, port: number): Promise<NodeServer> {
  let handler: Serve = loading
  const server = createServer(
    { maxHeaderSize: MAX_HEADER_BYTES, keepAliveTimeout: KEEP_ALIVE_MS },
    getRequestListener((request) => handler(request), { overrideGlobalObjects: false }),
  )
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) =>
      reject(
        error.code === 'EADDRINUSE'
          ? new Error(`port ${port} on ${host} is in use; choose another: --port N`)
          : new Error(`cannot listen on ${host}:${port}: ${error.message}`),
      ),
    )
    server.listen(port, host, resolve)
  })
  const address = server.address() as AddressInfo
  const name = address.family === 'IPv6' ? `[${address.address}]` : address.address
  return {
    url: `http://${name}:${address.port}`,
    serve: (given) => {
      handler = given
    },
    close: (graceMs) =>
      new Promise((resolve) => {
        const cut = setTimeout(() => server.closeAllConnections(), graceMs)
        server.close(() => {
          clearTimeout(cut)
          resolve()
        })
        server.closeIdleConnections()
      }),
  }
}

function loading(request: Request): Response {
  const error = new RingletError('node_draining', 'the node is loading its model', { retryAfterSeconds: 2 })
  return errorResponse(error, apiOf(new URL(request.url).pathname))
}
