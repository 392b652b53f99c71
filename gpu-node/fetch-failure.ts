/** What `fetch failed` leaves out: why no answer came. */

/** The innermost cause's code (`ECONNREFUSED`, `ENOTFOUND`, `CERT_HAS_EXPIRED`) or its words. */
export function fetchFailure(error: unknown): string {
  let reason = error
  while (reason instanceof Error && reason.cause instanceof Error) {
    reason = reason.cause
  }
  if (!(reason instanceof Error)) {
    return String(reason)
  }
  return (reason as NodeJS.ErrnoException).code ?? reason.message
}
