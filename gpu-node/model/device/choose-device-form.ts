/** Which form a step takes on a device, and which bank rows take part: a pure function of its tokens' adapters. */

import { type BankSizes, slotRow } from './bank-layout.ts'
import type { DeviceForm } from './device-form.ts'

export interface DeviceTraits {
  rank: number
  extras: boolean
  head: boolean
  embedding: boolean
}

export interface DevicePlan {
  form: DeviceForm
  /** Slots that the step uses, ascending. */
  slots: number[]
  /** Ranks that take part, by part: the same for every matrix. `gather`: with what fills up to a repeated shape. */
  ranks: number
}

/** Slot of tokens on the base, and owner of rows that are nobody's: they differ, or base tokens would own those rows. */
export const BASE_SLOT = -1
export const NO_OWNER = -2

/** Gathering reads an adapter, writes a copy and reads that. */
const GATHER_COST = 3

/**
 * `gather` where the step's adapters are few among the slots, `window` where most slots below the last one are in use. Ranks
 * are filled up to a power of two when gathered, so that few shapes occur and captured graphs are found again.
 */
export function planDevice(
  slotsOfStep: readonly (number | undefined)[],
  traitsOf: (slot: number) => DeviceTraits,
  { maxRank }: BankSizes,
): DevicePlan {
  const slots = [...new Set(slotsOfStep.filter((slot) => slot !== undefined))].sort((a, b) => a - b)
  const traits = slots.map(traitsOf)
  const some = (trait: 'extras' | 'head' | 'embedding'): boolean => traits.some((it) => it[trait])
  const shared = { extras: some('extras'), head: some('head'), embedding: some('embedding') }
  const used = traits.reduce((sum, { rank }) => sum + rank, 0)
  if (used === 0) {
    return { form: { ...shared, lora: 'none' }, slots, ranks: 0 }
  }
  const windowRanks = (slots.at(-1)! + 1) * maxRank
  const gathered = 2 ** Math.ceil(Math.log2(used))
  return GATHER_COST * gathered < windowRanks
    ? { form: { ...shared, lora: 'gather' }, slots, ranks: gathered }
    : { form: { ...shared, lora: 'window' }, slots, ranks: windowRanks }
}

/**
 * Writes the rows that a `gather` takes from banks of `parts` parts and their owners; what fills up owns nothing. The order is
 * part by part, as one slot's rows lie; any order would do, as A's and B's rows are chosen alike.
 */
export function writeGatherRows(
  plan: DevicePlan,
  traitsOf: (slot: number) => DeviceTraits,
  sizes: BankSizes,
  parts: number,
  rows: Int32Array,
  owners: Int32Array,
): void {
  let at = 0
  for (const slot of plan.slots) {
    const first = slotRow(slot, parts, sizes)
    const count = traitsOf(slot).rank * parts
    for (let i = 0; i < count; i++) {
      rows[at] = first + i
      owners[at++] = slot
    }
  }
  const end = plan.ranks * parts
  // Any row that exists: nobody owns what comes of it.
  rows.fill(0, at, end)
  owners.fill(NO_OWNER, at, end)
}

/** Owners of a slot's rows in the window form: itself for those of its adapter's rank, nobody for stale ones behind. */
export function writeSlotOwners(slot: number, rank: number, sizes: BankSizes, parts: number, owners: Int32Array): void {
  const first = slotRow(slot, parts, sizes)
  owners.fill(slot, first, first + rank * parts)
  owners.fill(NO_OWNER, first + rank * parts, first + sizes.maxRank * parts)
}
