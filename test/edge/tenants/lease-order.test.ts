import { expect, test } from 'vitest'
import { endsBehindRenewals } from '../../../edge/tenants/lease-order.ts'

test.each(['arrives', 'is lost'])('a request gives its place back behind its last renewal, which %s', async (fate) => {
  const heard: string[] = []
  let decide = () => {}
  const lease = endsBehindRenewals<void>({
    renew: () =>
      new Promise((resolve, reject) => {
        decide = () => {
          heard.push('renewal')
          fate === 'arrives' ? resolve() : reject(new Error('lost'))
        }
      }),
    settle: async () => {
      heard.push('end')
    },
  })
  const renewed = lease.renew().catch(() => undefined)
  const settled = lease.settle()
  await new Promise((resolve) => setImmediate(resolve))
  decide()
  await Promise.all([renewed, settled])
  expect(heard).toEqual(['renewal', 'end'])
})

test('without a renewal the place is given back at once', async () => {
  let ended = false
  const lease = endsBehindRenewals<void>({
    renew: async () => {},
    settle: async () => {
      ended = true
    },
  })
  await lease.settle()
  expect(ended).toBe(true)
})
