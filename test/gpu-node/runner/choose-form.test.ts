import { describe, expect, test } from 'vitest'
import { type AdapterTraits, planDecode } from '../../../gpu-node/model/runner/choose-form.ts'

const plain: AdapterTraits = { kernel: true, extras: false, head: false }
const traits: AdapterTraits[] = [
  plain,
  { ...plain, head: true },
  { ...plain, extras: true },
  { kernel: false, extras: true, head: true },
]
const plan = (...slots: (number | undefined)[]) =>
  planDecode(slots, (slot) => traits[slot]!).map(({ first, count, adapterSlot, form }) => {
    const { lora, extras, head } = form
    return `${first}+${count} ${lora}${extras ? ' extras' : ''}${head ? ' head' : ''}${adapterSlot === undefined ? '' : ` #${adapterSlot}`}`
  })

describe('the runs of a decode step', () => {
  test('base rows pay nothing for adapters that are not in the batch', () => {
    expect(plan(undefined, undefined)).toEqual(['0+2 none'])
  })

  test('different adapters and base rows share one run, with what any of them needs', () => {
    expect(plan(0, undefined, 0)).toEqual(['0+3 kernel'])
    expect(plan(0, 1)).toEqual(['0+2 kernel head'])
    expect(plan(2, 1)).toEqual(['0+2 kernel extras head'])
  })

  test('adapters that the kernel does not take run after the others, a stretch of equal rows at a time', () => {
    expect(plan(0, 3, 3, undefined, 3)).toEqual([
      '0+5 kernel',
      '1+2 uniform extras head #3',
      '4+1 uniform extras head #3',
    ])
    expect(plan(undefined, 3)).toEqual(['0+2 none', '1+1 uniform extras head #3'])
  })

  test('nothing runs for the base when every row is such an adapter', () => {
    expect(plan(3, 3)).toEqual(['0+2 uniform extras head #3'])
  })
})
