/** On which of a node's engines a sequence runs. Pure. */

export interface EngineLoad {
  healthy: boolean
  /** Sequences that wait or run there. */
  inFlight: number
  maxRows: number
  /** The sequence's adapter is there: in a slot, or with a sequence that is. */
  holdsAdapter: boolean
  /** Adapters that are there. */
  adapters: number
}

/**
 * The engine that holds the adapter, unless it has so much more to do that its sequences wait while rows are free elsewhere:
 * then the adapter gets a second home. Without an adapter, or with one that is nowhere: the least loaded, of equals the one
 * with the fewest adapters. `undefined`: none is healthy.
 */
export function chooseEngine(engines: readonly EngineLoad[], hasAdapter: boolean): number | undefined {
  const candidates = engines.flatMap((engine, index) => (engine.healthy ? [{ ...engine, index }] : []))
  const share = ({ inFlight, maxRows }: EngineLoad): number => inFlight / maxRows
  const better = (a: (typeof candidates)[number], b: (typeof candidates)[number]): number =>
    share(a) - share(b) || (hasAdapter ? a.adapters - b.adapters : 0) || a.index - b.index
  const least = [...candidates].sort(better)[0]
  const home = candidates.filter((engine) => hasAdapter && engine.holdsAdapter).sort(better)[0]
  if (home === undefined || least === undefined) {
    return least?.index
  }
  const waitsAtHome = home.inFlight >= home.maxRows
  const runsElsewhere = least.inFlight < least.maxRows
  return waitsAtHome && runsElsewhere ? least.index : home.index
}
