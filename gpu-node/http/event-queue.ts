/** A queue between the engine's callbacks and the one reply that reads them. */

export interface EventQueue<Item> extends AsyncIterable<Item[]> {
  push(item: Item): void
  /** No more items: the reader ends after those already queued, or throws `error`. */
  close(error?: Error): void
}

/**
 * The reader gets all that is queued at a time: what one engine step said about a sequence (its last token, and that it was
 * the last) arrives together. Items are bounded by the tokens a request may generate.
 */
export function createEventQueue<Item>(): EventQueue<Item> {
  let items: Item[] = []
  let closed: { error: Error | undefined } | undefined
  let wake: (() => void) | undefined
  return {
    push: (item) => {
      items.push(item)
      wake?.()
    },
    close: (error) => {
      closed ??= { error }
      wake?.()
    },
    async *[Symbol.asyncIterator]() {
      while (true) {
        if (items.length > 0) {
          const batch = items
          items = []
          yield batch
        } else if (closed !== undefined) {
          if (closed.error !== undefined) {
            throw closed.error
          }
          return
        } else {
          await new Promise<void>((resolve) => {
            wake = resolve
          })
          wake = undefined
        }
      }
    },
  }
}
