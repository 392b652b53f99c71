/** Places for requests that wait for a thread: each tenant has a share, so that one's never take them all. */

import { mayTakePlace } from './waiting-share.ts'

export class WaitingPlaces {
  readonly #most: number
  readonly #byTenant = new Map<string, number>()
  #taken = 0

  constructor(most: number) {
    this.#most = most
  }

  get taken(): number {
    return this.#taken
  }

  /** False: there is none for this tenant. */
  take(tenantId: string): boolean {
    const own = this.#byTenant.get(tenantId) ?? 0
    if (!mayTakePlace(own, this.#most - this.#taken)) {
      return false
    }
    this.#byTenant.set(tenantId, own + 1)
    this.#taken++
    return true
  }

  giveBack(tenantId: string): void {
    const left = (this.#byTenant.get(tenantId) ?? 0) - 1
    if (left > 0) {
      this.#byTenant.set(tenantId, left)
    } else {
      this.#byTenant.delete(tenantId)
    }
    this.#taken--
  }
}
