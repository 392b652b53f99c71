/**
 * Several engines, one a GPU, as one `EngineClient`. A sequence stays where it began; adapters are placed on the engine that
 * holds them. The group lives and dies as one: a node that lost a GPU leaves the fleet and starts again.
 */

import { RingletError } from '../../shared/errors.ts'
import type { PackedAdapter } from '../model/packed-adapter.ts'
import type { EmbedRequest, EngineClient, EngineSpec } from './engine-client.ts'
import { chooseEngine } from './engine-placement.ts'
import type { EngineEvent, EngineStats, SequenceRequest } from './engine-types.ts'
import { mergeStats } from './merge-stats.ts'

interface Member {
  client: EngineClient
  inFlight: number
  /** Sequences in flight by adapter digest: `isResident` comes later than they do. */
  users: Map<string, number>
}

export class EngineGroup implements EngineClient {
  readonly spec: EngineSpec
  readonly ended: Promise<Error | undefined>
  readonly #members: readonly Member[]

  constructor(clients: readonly EngineClient[]) {
    const first = clients[0]
    if (first === undefined) {
      throw new RingletError('internal', 'a group of no engines')
    }
    this.#members = clients.map((client) => ({ client, inFlight: 0, users: new Map() }))
    const specs = clients.map(({ spec }) => spec)
    const sum = (key: 'maxRows' | 'adapterSlots'): number => specs.reduce((total, spec) => total + spec[key], 0)
    this.spec = {
      ...first.spec,
      maxRows: sum('maxRows'),
      adapterSlots: sum('adapterSlots'),
      maxPositions: Math.min(...specs.map(({ maxPositions }) => maxPositions)),
    }
    this.ended = Promise.race(clients.map(({ ended }) => ended))
  }

  get healthy(): boolean {
    return this.#members.every(({ client }) => client.healthy)
  }

  inFlight(): number {
    return this.#members.reduce((sum, { client }) => sum + client.inFlight(), 0)
  }

  submit(
    request: SequenceRequest,
    adapter: PackedAdapter | undefined,
    onEvent: (event: EngineEvent) => void,
  ): () => void {
    const member = this.#memberFor(adapter?.digest)
    const leave = enter(member, adapter?.digest)
    return member.client.submit(request, adapter, (event) => {
      if (event.kind === 'finished' || event.kind === 'failed' || event.kind === 'aborted') {
        leave()
      }
      onEvent(event)
    })
  }

  async embed(request: EmbedRequest): Promise<Float32Array> {
    const member = this.#memberFor(request.adapter?.digest)
    const leave = enter(member, request.adapter?.digest)
    try {
      return await member.client.embed(request)
    } finally {
      leave()
    }
  }

  preloadAdapter(adapter: PackedAdapter): Promise<boolean> {
    return this.#memberFor(adapter.digest).client.preloadAdapter(adapter)
  }

  /** Where it is or would go; where no slot may be pinned there, on another. */
  async pinAdapter(adapter: PackedAdapter): Promise<void> {
    const chosen = this.#memberFor(adapter.digest)
    const others = this.#members.filter((member) => member !== chosen)
    for (const [i, { client }] of [chosen, ...others].entries()) {
      try {
        await client.pinAdapter(adapter)
        return
      } catch (error) {
        const full = error instanceof RingletError && error.code === 'adapter_capacity'
        if (!full || i === others.length) {
          throw error
        }
      }
    }
  }

  async unpinAdapter(digest: string): Promise<void> {
    await this.#all((client) => client.unpinAdapter(digest))
  }

  async unloadAdapter(digest: string): Promise<void> {
    await this.#all((client) => client.unloadAdapter(digest))
  }

  isResident(digest: string): boolean {
    return this.#members.some(({ client }) => client.isResident(digest))
  }

  stats(): EngineStats {
    return mergeStats(this.#members.map(({ client }) => client.stats()))
  }

  async freshStats(): Promise<EngineStats> {
    return mergeStats(await this.#all((client) => client.freshStats()))
  }

  async drain(): Promise<void> {
    await this.#all((client) => client.drain())
  }

  async close(): Promise<void> {
    await this.#all((client) => client.close())
  }

  #all<T>(act: (client: EngineClient) => Promise<T>): Promise<T[]> {
    return Promise.all(this.#members.map(({ client }) => act(client)))
  }

  /** Once an engine is dead it gets all that comes: its refusal says so. */
  #memberFor(digest: string | undefined): Member {
    const dead = this.#members.find(({ client }) => !client.healthy)
    if (dead !== undefined) {
      return dead
    }
    const loads = this.#members.map(({ client, inFlight, users }) => ({
      healthy: client.healthy,
      inFlight,
      maxRows: client.spec.maxRows,
      holdsAdapter: digest !== undefined && (users.has(digest) || client.isResident(digest)),
      adapters: client.stats().residentAdapters.length + users.size,
    }))
    return this.#members[chooseEngine(loads, digest !== undefined) ?? 0]!
  }
}

/** Counts a sequence; returns the act that ends it. */
function enter(member: Member, digest: string | undefined): () => void {
  member.inFlight++
  if (digest !== undefined) {
    member.users.set(digest, (member.users.get(digest) ?? 0) + 1)
  }
  return () => {
    member.inFlight--
    if (digest !== undefined) {
      const users = member.users.get(digest)! - 1
      users === 0 ? member.users.delete(digest) : member.users.set(digest, users)
    }
  }
}
