/** The `id:` lines of a stream: which tokens of which choice the client has with each event. */

export interface StreamPosition {
  /** A token whose text goes out with the next event of its choice. */
  add(choice: number, tokenId: number): void
  /** Are there tokens of this choice that no event has carried? */
  waits(choice: number): boolean
  /** The id of an event of this choice; `undefined` when it carries no new token. */
  take(choice: number): string | undefined
}

/** `delivered`: how many tokens of each choice the client had before; `tag`: this node's. */
export function createStreamPosition(tag: string, delivered: (choice: number) => number): StreamPosition {
  const counts = new Map<number, number>()
  const pending = new Map<number, number[]>()
  return {
    add: (choice, tokenId) => {
      const ids = pending.get(choice)
      if (ids === undefined) {
        pending.set(choice, [tokenId])
      } else {
        ids.push(tokenId)
      }
    },
    waits: (choice) => pending.has(choice),
    take: (choice) => {
      const ids = pending.get(choice)
      if (ids === undefined) {
        return undefined
      }
      pending.delete(choice)
      const count = (counts.get(choice) ?? delivered(choice)) + ids.length
      counts.set(choice, count)
      return `${choice}:${count}:${ids.join(',')}:${tag}`
    },
  }
}
