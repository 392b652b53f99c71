/** Ticket keys that come from the edge instead of the node's configuration; they change when the edge's secrets rotate. */

import type { SigningKeys } from '../../shared/hmac.ts'
import { keysVersion, openKeys } from '../../shared/sealed-keys.ts'

/** Serves wherever `SigningKeys` are read anew for each ticket. Without keys it verifies nothing. */
export interface ReceivedKeys extends SigningKeys {
  readonly keys: SigningKeys['keys']
  /** Empty until keys were received. */
  readonly version: string
  receive: (sealed: string, joinKeys: SigningKeys) => Promise<void>
}

export function createReceivedKeys(): ReceivedKeys {
  let current: SigningKeys = { keys: [] }
  let version = ''
  return {
    get keys() {
      return current.keys
    },
    get version() {
      return version
    },
    receive: async (sealed, joinKeys) => {
      // Sealed with the key that signs this node's heartbeats: the first.
      const joinSecret = joinKeys.keys[0]?.secret ?? ''
      current = await openKeys(sealed, joinSecret)
      version = await keysVersion(current, joinSecret)
    },
  }
}
