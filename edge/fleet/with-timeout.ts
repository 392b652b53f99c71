/** A shard's answer, or none: the registry being away must stop nothing else. */

/** `undefined` when the work failed or took too long. */
export async function withTimeout<T>(work: Promise<T>, timeoutMs: number): Promise<T | undefined> {
  let giveUp: () => void
  const late = new Promise<undefined>((resolve) => {
    giveUp = () => resolve(undefined)
  })
  const timer = setTimeout(() => giveUp(), timeoutMs)
  try {
    return await Promise.race([work, late])
  } catch {
    // Expected; it shows in the age of the fleet's picture, which /health and the admin API report.
    return undefined
  } finally {
    clearTimeout(timer)
  }
}
