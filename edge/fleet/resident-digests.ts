/**
 * Which content nodes hold under which names, packed: 40 bytes a name, so that a million residents of a thousand nodes are a
 * few megabytes in each registry shard.
 */

import type { ResidentAdapter } from '../../shared/fleet.ts'
import { fromHex, toHex } from '../hex.ts'
import { fmix32, fnv1a32 } from '../routing/hash.ts'

export interface ResidentDigests {
  /** Two 32-bit hashes for each name. */
  keys: Uint32Array
  /** SHA-256, 32 bytes for each name. */
  digests: Uint8Array
}

const DIGEST_BYTES = 32
const DIGEST = /^[0-9a-f]{64}$/

/** A name with an exact revision counts as the name without one too: which of several is the newest is its home's to say. */
export function toResidentDigests(resident: readonly ResidentAdapter[]): ResidentDigests {
  const named = resident.flatMap(({ ref, digest }) =>
    DIGEST.test(digest) ? namesOf(ref).map((name) => [name, digest] as const) : [],
  )
  const keys = new Uint32Array(2 * named.length)
  const digests = new Uint8Array(DIGEST_BYTES * named.length)
  for (const [i, [name, digest]] of named.entries()) {
    keys.set(keyOf(name), 2 * i)
    digests.set(fromHex(digest), DIGEST_BYTES * i)
  }
  return { keys, digests }
}

/** For each name the different digests that the lists know under it, at most two: one is an answer, two are none. */
export function findDigests(lists: Iterable<ResidentDigests>, names: readonly string[]): string[][] {
  const found = names.map(() => new Set<string>())
  const wanted = new Map<number, { high: number; at: number }[]>()
  for (const [at, name] of names.entries()) {
    const [low, high] = keyOf(name)
    wanted.set(low, [...(wanted.get(low) ?? []), { high, at }])
  }
  for (const { keys, digests } of lists) {
    for (let i = 0; 2 * i < keys.length; i++) {
      for (const { high, at } of wanted.get(keys[2 * i]!) ?? []) {
        if (keys[2 * i + 1] === high && found[at]!.size < 2) {
          found[at]!.add(toHex(digests.subarray(DIGEST_BYTES * i, DIGEST_BYTES * (i + 1))))
        }
      }
    }
  }
  return found.map((set) => [...set])
}

/** Only the hub has revisions; a merge's key is no such name. */
function namesOf(ref: string): string[] {
  const at = ref.startsWith('hub:') ? ref.lastIndexOf('@') : -1
  return at < 0 ? [ref] : [ref, ref.slice(0, at)]
}

function keyOf(name: string): [low: number, high: number] {
  const low = fnv1a32(name)
  return [fmix32(low), fmix32(fnv1a32(name, low))]
}
