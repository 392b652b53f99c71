// The streams of a bench in a thread of their own, so that the pauses measured are the node's and not those of a busy client.
// Started by stream-clients.ts; reads replies with as little work as can be.

import { Agent, type ClientRequest, request } from 'node:http'
import { parentPort } from 'node:worker_threads'
import type { FromStreams, StreamRequest, ToStreams } from './stream-clients.ts'

/** Tokens of a stream before its pauses count. */
const WARM_TOKENS = 4
const port = parentPort!
const agent = new Agent({ keepAlive: true })
let pauses: number[] = []
let running: ClientRequest[] = []
let begun = 0
let ended = 0
let stopping = false

port.on('message', (message: ToStreams) => {
  if (message.kind === 'start') {
    pauses = []
    begun = 0
    ended = 0
    stopping = false
    running = message.requests.map((one) => start(one, message.requests.length))
  } else if (message.kind === 'clear') {
    pauses = []
  } else {
    stopping = true
    post({ kind: 'pauses', pauses, ended })
    for (const one of running) {
      one.destroy()
    }
  }
})

function start({ url, headers, body }: StreamRequest, count: number): ClientRequest {
  let tokens = 0
  let last = 0
  const sent = request(url, { method: 'POST', headers, agent }, (reply) => {
    let line = ''
    reply.setEncoding('latin1')
    reply.on('data', (chunk: string) => {
      const at = performance.now()
      const lines = (line + chunk).split('\n')
      line = lines.pop()!
      // An event with tokens has an id.
      for (const _ of lines.filter((text) => text.startsWith('id:'))) {
        pauses.push(at - last)
        last = at
        tokens++
        if (tokens === WARM_TOKENS && ++begun === count) {
          post({ kind: 'begun' })
        }
      }
    })
    reply.on('end', () => {
      ended++
    })
    reply.on('error', (error: Error) => fail(error))
    if (reply.statusCode !== 200) {
      fail(new Error(`a stream got ${reply.statusCode}`))
    }
  })
  sent.on('error', (error: Error) => fail(error))
  sent.end(body)
  return sent
}

function fail(error: Error): void {
  if (!stopping) {
    post({ kind: 'failed', message: error.message })
  }
}

function post(message: FromStreams): void {
  port.postMessage(message)
}
