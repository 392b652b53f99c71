/** The Durable Object that hears the nodes: one shard of the registry. Knows nothing of adapters' names or of requests. */

import { DurableObject } from 'cloudflare:workers'
import type { Heartbeat, HeartbeatAnswer } from '../../shared/fleet.ts'
import { afterHeartbeat, isAlive, isDraining, isForgotten, type NodeRecord, presentRecords } from './membership.ts'
import { findDigests, type ResidentDigests } from './resident-digests.ts'
import type { ResidentHashes } from './resident-index.ts'
import type { ShardReport } from './shard-report.ts'

interface Residents {
  bootId: string
  version: number
  hashes: ResidentHashes
  digests: ResidentDigests
  /** The cursor at which they changed. */
  changedAt: number
}

const RECORD_PREFIX = 'node:'

export class FleetRegistry extends DurableObject {
  readonly #records = new Map<string, NodeRecord>()
  readonly #residents = new Map<string, Residents>()
  readonly #run = crypto.randomUUID()
  #cursor = 0

  constructor(state: DurableObjectState, env: Cloudflare.Env) {
    super(state, env)
    // A restarted shard gives the nodes it knew one silence's time to speak, so that no isolate sees an empty fleet.
    void state.blockConcurrencyWhile(async () => {
      const now = Date.now()
      for (const record of (await state.storage.list<NodeRecord>({ prefix: RECORD_PREFIX })).values()) {
        this.#records.set(record.report.nodeId, { ...record, lastSeenAt: now })
      }
    })
  }

  /** `listed`: the heartbeat's residents, `undefined` when it brought none. */
  async report(
    heartbeat: Heartbeat,
    listed: Pick<Residents, 'hashes' | 'digests'> | undefined,
    sentAt: number,
  ): Promise<HeartbeatAnswer> {
    const now = Date.now()
    const { nodeId } = heartbeat
    const known = this.#records.get(nodeId)
    const record = afterHeartbeat(known, heartbeat, sentAt, now)
    if (record !== undefined) {
      this.#records.set(nodeId, record)
      if (known === undefined || !sameMembership(known, record)) {
        await this.ctx.storage.put(RECORD_PREFIX + nodeId, record)
      }
      if (listed !== undefined) {
        this.#cursor += 1
        const { bootId, residentVersion: version } = heartbeat
        this.#residents.set(nodeId, { bootId, version, ...listed, changedAt: this.#cursor })
      }
    }
    await this.#forget(now)
    const residents = this.#residents.get(nodeId)
    return {
      accepted: true,
      wantResident: residents?.bootId !== heartbeat.bootId || residents.version !== heartbeat.residentVersion,
      draining: this.#records.get(nodeId)?.drainAsked ?? false,
    }
  }

  /** What changed for an isolate that has seen everything up to `cursor` of `run`. */
  read(run: string, cursor: number): ShardReport {
    const now = Date.now()
    const after = run === this.#run ? cursor : -1
    const { records, allSilent } = presentRecords(this.#records.values(), now)
    return {
      run: this.#run,
      cursor: this.#cursor,
      allSilent,
      nodes: records.map((record) => ({
        report: { ...record.report, draining: isDraining(record) },
        ageMs: now - record.lastSeenAt,
        damped: record.damped,
      })),
      residents: records.flatMap(({ report: { nodeId, bootId } }) => {
        const residents = this.#residents.get(nodeId)
        const isNews = residents !== undefined && residents.bootId === bootId && residents.changedAt > after
        return isNews ? [{ nodeId, hashes: residents.hashes }] : []
      }),
    }
  }

  /** For each name the different digests under which nodes that are alive hold it, at most two. */
  digests(names: readonly string[]): string[][] {
    const now = Date.now()
    const alive = [...this.#records.values()].filter((record) => isAlive(record, now))
    const lists = alive.flatMap(({ report: { nodeId, bootId } }) => {
      const residents = this.#residents.get(nodeId)
      return residents?.bootId === bootId ? [residents.digests] : []
    })
    return findDigests(lists, names)
  }

  /** An operator's wish, kept until the node restarts. `false`: no such node. */
  async drain(nodeId: string, draining: boolean): Promise<boolean> {
    const record = this.#records.get(nodeId)
    if (record === undefined || !isAlive(record, Date.now())) {
      return false
    }
    const changed = { ...record, drainAsked: draining }
    this.#records.set(nodeId, changed)
    await this.ctx.storage.put(RECORD_PREFIX + nodeId, changed)
    return true
  }

  async #forget(now: number): Promise<void> {
    for (const [nodeId, record] of this.#records) {
      if (isForgotten(record, now)) {
        this.#records.delete(nodeId)
        this.#residents.delete(nodeId)
        await this.ctx.storage.delete(RECORD_PREFIX + nodeId)
      }
    }
  }
}

/** Storage is written when a restart would otherwise forget something, not at every heartbeat. */
function sameMembership(a: NodeRecord, b: NodeRecord): boolean {
  return (
    a.left === b.left &&
    a.drainAsked === b.drainAsked &&
    a.damped === b.damped &&
    a.report.bootId === b.report.bootId &&
    a.report.url === b.report.url &&
    a.report.draining === b.report.draining &&
    a.report.baseDigest === b.report.baseDigest &&
    a.report.maxSequences === b.report.maxSequences
  )
}
