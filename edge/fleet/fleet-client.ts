/** How the Worker speaks to the registry: which shard hears a node, and one call for each thing a shard can do. */

import type { Heartbeat, HeartbeatAnswer } from '../../shared/fleet.ts'
import { nodeHash } from '../routing/hash.ts'
import type { FleetRegistry } from './fleet-registry.ts'
import { toResidentDigests } from './resident-digests.ts'
import { toResidentHashes } from './resident-index.ts'
import type { ShardReader } from './shard-report.ts'
import { withTimeout } from './with-timeout.ts'

export interface FleetRegistryBinding {
  namespace: DurableObjectNamespace<FleetRegistry>
  /** One shard hears about 250 nodes at ease: 1 for small fleets, 8 for 1,000 nodes. */
  shards: number
  /** Where the shards are made, e.g. `weur`; without it near the first node that speaks. */
  locationHint?: DurableObjectLocationHint
}

export async function reportHeartbeat(
  registry: FleetRegistryBinding,
  heartbeat: Heartbeat,
  sentAt: number,
): Promise<HeartbeatAnswer> {
  const { resident, ...light } = heartbeat
  const listed =
    resident === undefined ? undefined : { hashes: toResidentHashes(resident), digests: toResidentDigests(resident) }
  return await shardOf(registry, heartbeat.nodeId).report(light, listed, sentAt)
}

/** Takes a node out of placement for new requests, or back in. `false`: no such node. */
export async function drainNode(registry: FleetRegistryBinding, nodeId: string, draining: boolean): Promise<boolean> {
  return await shardOf(registry, nodeId).drain(nodeId, draining)
}

/** Longest wait for a shard. */
const DIGESTS_TIMEOUT_MS = 1_500

/**
 * The digest under which nodes hold each of these names; `undefined` where none does, where nodes differ, and where a shard
 * did not answer.
 */
export async function residentDigests(
  registry: FleetRegistryBinding,
  names: readonly string[],
): Promise<(string | undefined)[]> {
  if (names.length === 0) {
    return []
  }
  const answers = await Promise.all(
    Array.from({ length: registry.shards }, (_, shard) =>
      withTimeout(fleetShard(registry, shard).digests(names), DIGESTS_TIMEOUT_MS),
    ),
  )
  return names.map((_, i) => {
    const found = new Set(answers.flatMap((answer) => answer?.[i] ?? []))
    return found.size === 1 ? [...found][0] : undefined
  })
}

export function fleetReader(registry: FleetRegistryBinding): ShardReader {
  return {
    shards: registry.shards,
    read: (shard, run, cursor) => fleetShard(registry, shard).read(run, cursor),
  }
}

function fleetShard(registry: FleetRegistryBinding, shard: number): DurableObjectStub<FleetRegistry> {
  const { namespace, locationHint } = registry
  const id = namespace.idFromName(`shard-${shard}`)
  return locationHint === undefined ? namespace.get(id) : namespace.get(id, { locationHint })
}

function shardOf(registry: FleetRegistryBinding, nodeId: string): DurableObjectStub<FleetRegistry> {
  return fleetShard(registry, nodeHash(nodeId) % registry.shards)
}
