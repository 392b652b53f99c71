import { expect, test } from 'vitest'
import { findDigests, toResidentDigests } from '../../../edge/fleet/resident-digests.ts'

const digest = (n: number) => n.toString(16).padStart(64, '0')
const resident = (ref: string, n: number) => ({ ref, digest: digest(n), tier: 'ram' as const })

test('a name is found where any list has it, and nowhere else', () => {
  const lists = [
    toResidentDigests([resident('local:a', 1), resident('s3://b/c', 2)]),
    toResidentDigests([resident('local:a', 1), resident('local:d', 3)]),
  ]
  const names = ['local:a', 's3://b/c', 'local:d', 'local:e', '']
  expect(findDigests(lists, names)).toEqual([[digest(1)], [digest(2)], [digest(3)], [], []])
})

test('without a revision, a hub’s adapter has the digest of the revision that is held, if it is one alone', () => {
  const held = [resident('hub:org/x@aaa', 1), resident('hub:org/y@bbb', 2), resident('hub:org/y@ccc', 3)]
  const names = ['hub:org/x', 'hub:org/x@aaa', 'hub:org/x@zzz', 'hub:org/y', 'hub:org/y@ccc']
  expect(findDigests([toResidentDigests(held)], names)).toEqual([
    [digest(1)],
    [digest(1)],
    [],
    [digest(2), digest(3)],
    [digest(3)],
  ])
})

test('what is no SHA-256 is left out', () => {
  const packed = toResidentDigests([{ ref: 'local:a', digest: 'abc', tier: 'ram' }])
  expect(findDigests([packed], ['local:a'])).toEqual([[]])
})

test('a hundred thousand names are kept apart', () => {
  const held = Array.from({ length: 100_000 }, (_, n) => resident(`local:adapter-${n}`, n))
  const packed = toResidentDigests(held)
  expect(packed.keys.byteLength + packed.digests.byteLength).toBe(40 * 100_000)
  const asked = [0, 17, 99_999]
  const names = asked.map((n) => `local:adapter-${n}`)
  expect(findDigests([packed], names)).toEqual(asked.map((n) => [digest(n)]))
})
