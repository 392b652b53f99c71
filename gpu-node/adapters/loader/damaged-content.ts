/** Files of this node's own that are not as they were stored: they are removed, and what they held is made or fetched again. */
export class DamagedContentError extends Error {
  override readonly name = 'DamagedContentError'
}
