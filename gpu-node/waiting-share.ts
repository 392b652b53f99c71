/** How many of a queue's places one tenant may wait on, so that others find one. Pure. */

/** With the queue nearly full, a tenant may hold at most this many times the places that are still free. */
const SHARE_OF_FREE_PLACES = 8

/**
 * May a tenant that waits on `own` places take one more? It may take what is left while few wait; the fuller the queue, the
 * more of the rest is kept for others (a dynamic threshold: Choudhury and Hahne 1998).
 */
export function mayTakePlace(own: number, free: number): boolean {
  return free > 0 && own < SHARE_OF_FREE_PLACES * free
}
