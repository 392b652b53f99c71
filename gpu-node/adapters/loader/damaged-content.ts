/** Files of this node's own that are not as they were stored: they are removed, and what they held is made or fetched again. */
export class DamagedContentError extends Error {
  override readonly name = 'DamagedContentError'
  /** Of the content, where one of several was read. */
  readonly digest: string | undefined

  constructor(message: string, { digest, ...options }: ErrorOptions & { digest?: string } = {}) {
    super(message, options)
    this.digest = digest
  }
}
