/** LoRAX's stream: one event a token; the last one has the whole text. No `[DONE]`. */

import type { ChoiceFinish, ChoiceToken } from './choice.ts'
import type { EventWriter } from './event-stream.ts'
import type { Generation } from './generation.ts'
import { type LoraxShape, toLoraxEvent } from './lorax-reply.ts'
import type { StreamPosition } from './stream-position.ts'

/**
 * Each token's event says whether it is the last. The engine tells so together with the token, but for a grammar: that its
 * text is complete shows only when the next token is asked for. So there each token waits for the next event.
 */
export async function writeLoraxStream(
  shape: LoraxShape,
  generation: Generation,
  position: StreamPosition,
  writer: EventWriter,
): Promise<void> {
  const endsLate = shape.request.format !== undefined
  let held: ChoiceToken | undefined
  const flush = async (ended: ChoiceFinish | undefined): Promise<void> => {
    if (held !== undefined) {
      position.add(0, held.tokenId)
      await writer.send(JSON.stringify(toLoraxEvent(shape, generation, held, ended)), position.take(0))
      held = undefined
    }
  }
  for await (const events of generation.events) {
    for (const event of events) {
      if (event.kind === 'token') {
        await flush(undefined)
        held = event.token
      } else {
        await flush(event.finish)
      }
    }
    if (!endsLate) {
      await flush(undefined)
    }
  }
}
