/** A lease ends behind its last renewal: one that overtook the end would bring it to life again, for nobody to give back. */

export interface LeaseCalls<Used> {
  renew: () => Promise<void>
  settle: (used: Used) => Promise<void>
}

export function endsBehindRenewals<Used>({ renew, settle }: LeaseCalls<Used>): LeaseCalls<Used> {
  let renewal: Promise<void> | undefined
  return {
    renew: () => {
      renewal = renew()
      return renewal
    },
    settle: async (used) => {
      await renewal?.catch(() => undefined) // its caller hears of it
      await settle(used)
    },
  }
}
