import { expect, test } from 'vitest'
import { checkInvariants, type EngineSnapshot, type SequenceView } from '../../../gpu-node/engine/invariants.ts'

const RUNNING: SequenceView = {
  id: 'r',
  status: 'running',
  kvRow: 0,
  digest: 'a',
  adapterSlot: 1,
  holdsLease: true,
  filled: 4,
  length: 5,
  capacity: 9,
}
const WAITING: SequenceView = {
  ...RUNNING,
  id: 'w',
  status: 'waiting',
  kvRow: undefined,
  adapterSlot: undefined,
  holdsLease: false,
}
const GOOD: EngineSnapshot = {
  maxRows: 2,
  runningRows: 1,
  freeRows: 1,
  rowOwners: ['r', undefined],
  sequences: [RUNNING, WAITING],
  slots: [{ adapterSlot: 1, digest: 'a', leases: 1 }],
  waiting: 1,
  submitted: 5,
  ended: 3,
  prefixViolations: [],
}

const withRunning = (changes: Partial<SequenceView>): EngineSnapshot => ({
  ...GOOD,
  sequences: [{ ...RUNNING, ...changes }, WAITING],
})

test('a sound snapshot has no violations', () => {
  expect(checkInvariants(GOOD)).toEqual([])
})

test.each<[string, EngineSnapshot]>([
  ['a row that is neither free nor used', { ...GOOD, freeRows: 0 }],
  ['a row whose owner does not agree', { ...GOOD, rowOwners: ['w', undefined] }],
  ['a running sequence behind the running rows', withRunning({ kvRow: 1 })],
  ['a running sequence without a row', { ...withRunning({ kvRow: undefined }), freeRows: 2 }],
  ['a lease that nobody holds', { ...GOOD, slots: [{ adapterSlot: 1, digest: 'a', leases: 2 }] }],
  ['a sequence with another slot than its adapter', withRunning({ adapterSlot: 0 })],
  ['an adapter in two slots', { ...GOOD, slots: [...GOOD.slots, { adapterSlot: 0, digest: 'a', leases: 1 }] }],
  ['a sequence whose adapter is gone', { ...GOOD, slots: [] }],
  [
    'a running sequence without its lease',
    { ...withRunning({ holdsLease: false }), slots: [{ adapterSlot: 1, digest: 'a', leases: 0 }] },
  ],
  ['more filled than there are tokens', withRunning({ filled: 6 })],
  ['a sequence that was lost', { ...GOOD, submitted: 6 }],
  ['a sequence that ended twice', { ...GOOD, ended: 4 }],
  ['a queue that is not what waits', { ...GOOD, waiting: 2 }],
  ['a prefix cache that miscounts', { ...GOOD, prefixViolations: ['prefix cache counts 1 bytes and holds 2'] }],
])('%s is found', (_, snapshot) => {
  expect(checkInvariants(snapshot).length).toBeGreaterThan(0)
})
