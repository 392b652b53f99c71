/** LoRAX's stream: one event a token; the last one has the whole text. No `[DONE]`. */

import type { EventWriter } from './event-stream.ts'
import type { Generation } from './generation.ts'
import { type LoraxShape, toLoraxEvent } from './lorax-reply.ts'
import type { StreamPosition } from './stream-position.ts'

export async function writeLoraxStream(
  shape: LoraxShape,
  generation: Generation,
  position: StreamPosition,
  writer: EventWriter,
): Promise<void> {
  for await (const events of generation.events) {
    for (const [i, event] of events.entries()) {
      if (event.kind === 'token') {
        const next = events[i + 1]
        const ended = next?.kind === 'end' ? next.finish : undefined
        position.add(event.choice, event.token.tokenId)
        const data = toLoraxEvent(shape, generation, event.token, ended)
        await writer.send(JSON.stringify(data), position.take(event.choice))
      }
    }
  }
}
