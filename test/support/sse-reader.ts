/** Reads a response's server-sent events one by one, whatever pieces they arrive in. */

import { createParser, type EventSourceMessage } from 'eventsource-parser'

export async function* readEvents(response: Response): AsyncGenerator<EventSourceMessage> {
  const queue: EventSourceMessage[] = []
  const parser = createParser({ onEvent: (event) => queue.push(event) })
  const decoder = new TextDecoder()
  for await (const chunk of response.body ?? []) {
    parser.feed(decoder.decode(chunk, { stream: true }))
    yield* queue.splice(0)
  }
}
