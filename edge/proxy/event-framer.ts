/**
 * Cuts a node's event stream into whole events and reads their `id:` lines; of the rest it knows nothing. What it gives out
 * can always be continued elsewhere: no half event, and no event that another node would send again.
 */

import type { Delivered } from '../../shared/ticket.ts'

/** The comment line with which a node ends a stream that ended well. */
const END_LINE = ': end'
/** Of a stream whose headers went out before its adapter was here: `<digest or base> <prompt tokens>`. */
const STARTED_LINE = /^: started ([\w:-]{1,128}) (\d{1,9})$/
/** Ids run to a few hundred bytes; a longer unfinished event is no event of ours. */
const MAX_EVENT_BYTES = 4 * 1024 * 1024
const LF = 10
const CR = 13

/** What the client has of a stream, over all nodes that served it. */
export interface StreamProgress {
  delivered: Delivered
  /** Token ids of `delivered` that came by here, all choices together: those from before a client resumed don't count. */
  tokens: number
  /** Of the adapter that answers, `base` for none; absent until a node has told it. */
  digest?: string
  /** As a node counted them; absent until one has told. */
  promptTokens?: number
}

export interface EventFramer {
  /** Takes bytes as they come; returns what may go to the client now, in order. */
  push: (chunk: Uint8Array) => Uint8Array[]
  /** After the end line: what is left. */
  rest: () => Uint8Array[]
  /** Has the stream's end line been read? A stream that closes without it was broken. */
  ended: () => boolean
}

/** Thrown when a node's stream does not follow the client's progress: it may not go on from this node. */
export class StreamGapError extends Error {
  override readonly name = 'StreamGapError'
}

/**
 * Events without an id (a role, a usage report, `[DONE]`) are held until the next event with one, or the end: were they
 * passed on and the node then lost, its successor would send them a second time. Comments pass at once.
 */
export function createEventFramer(progress: StreamProgress): EventFramer {
  /** The unfinished event; `scanned` bytes of it are known to have no line end. */
  let pending: Uint8Array = new Uint8Array(0)
  let scanned = 0
  let lineStart = 0
  let held: Uint8Array[] = []
  let ended = false
  let id: string | undefined
  let isComment = true

  const takeEvent = (event: Uint8Array, out: Uint8Array[]): void => {
    if (ended) {
      append(out, [...held, event])
      held = []
    } else if (id !== undefined) {
      if (advance(progress, id)) {
        append(out, [...held, event])
      }
      held = []
    } else if (isComment) {
      append(out, [event])
    } else {
      held.push(event)
    }
    id = undefined
    isComment = true
  }

  const readLine = (line: Uint8Array): void => {
    if (line[0] !== 0x3a) {
      isComment = false
      if (line[0] === 0x69 && line[1] === 0x64 && line[2] === 0x3a) {
        id = decoder.decode(line.subarray(3)).trimStart()
      }
      return
    }
    const comment = decoder.decode(line)
    if (comment === END_LINE) {
      ended = true
    } else {
      noteStart(progress, STARTED_LINE.exec(comment))
    }
  }

  return {
    ended: () => ended,
    rest: () => {
      const out = pending.length > 0 ? [...held, pending] : held
      pending = new Uint8Array(0)
      held = []
      return out
    },
    push: (chunk) => {
      const out: Uint8Array[] = []
      pending = pending.length === 0 ? chunk : concat(pending, chunk)
      let eventStart = 0
      for (let at = pending.indexOf(LF, scanned); at !== -1; at = pending.indexOf(LF, at + 1)) {
        const lineEnd = at > lineStart && pending[at - 1] === CR ? at - 1 : at
        if (lineEnd > lineStart) {
          readLine(pending.subarray(lineStart, lineEnd))
        } else {
          takeEvent(pending.subarray(eventStart, at + 1), out)
          eventStart = at + 1
        }
        lineStart = at + 1
      }
      pending = pending.subarray(eventStart)
      scanned = pending.length
      lineStart -= eventStart
      if (pending.length > MAX_EVENT_BYTES) {
        throw new StreamGapError(`an event has more than ${MAX_EVENT_BYTES} bytes`)
      }
      return out
    },
  }
}

const decoder = new TextDecoder()

/** Throws when another adapter answers than the one whose tokens the client has. */
function noteStart(progress: StreamProgress, started: RegExpExecArray | null): void {
  if (started === null) {
    return
  }
  const [, digest = '', promptTokens] = started
  if ((progress.digest ?? digest) !== digest) {
    throw new StreamGapError('the adapter has changed since the stream began')
  }
  progress.digest = digest
  progress.promptTokens ??= Number(promptTokens)
}

/** `<choice>:<count>:<ids>:<node tag>`. `false`: the client has these tokens already. Throws when tokens between are missing. */
function advance(progress: StreamProgress, id: string): boolean {
  const match = /^(\d{1,6}):(\d{1,9}):((?:\d{1,10}(?:,\d{1,10})*)?)(?::[0-9a-z]{1,7})?$/.exec(id)
  if (match === null) {
    throw new StreamGapError('an event id is not of the form choice:count:ids:tag')
  }
  const choice = match[1]!
  const count = Number(match[2])
  const ids = match[3] === '' ? [] : match[3]!.split(',').map(Number)
  const known = progress.delivered[choice] ?? []
  const before = known.length
  if (count <= before && ids.length > 0) {
    return false
  }
  if (count !== before + ids.length) {
    throw new StreamGapError(`choice ${choice} goes from token ${before} to ${count} with ${ids.length} ids`)
  }
  known.push(...ids)
  progress.delivered[choice] = known
  progress.tokens += ids.length
  return true
}

/** Joins events that lie one behind the other in the same bytes: each write to the client costs as much as many events. */
function append(out: Uint8Array[], events: readonly Uint8Array[]): void {
  for (const event of events) {
    const last = out.at(-1)
    if (last !== undefined && last.buffer === event.buffer && last.byteOffset + last.length === event.byteOffset) {
      out[out.length - 1] = new Uint8Array(last.buffer, last.byteOffset, last.length + event.length)
    } else {
      out.push(event)
    }
  }
}

function concat(a: Uint8Array, b: Uint8Array): Uint8Array {
  const whole = new Uint8Array(a.length + b.length)
  whole.set(a)
  whole.set(b, a.length)
  return whole
}
