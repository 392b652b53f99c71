/** Which addresses lie inside: of this machine, of its network, of a cloud's metadata. A name's addresses are what it resolves to. */

import { type LookupAddress, type LookupOptions, lookup } from 'node:dns'
import { BlockList, isIP } from 'node:net'

const INSIDE = new BlockList()
for (const [network, bits] of [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.168.0.0', 16],
  ['198.18.0.0', 15],
  ['224.0.0.0', 3],
] as const) {
  INSIDE.addSubnet(network, bits, 'ipv4')
}
for (const [network, bits] of [
  // Loopback, unspecified, and IPv4 written as IPv6 in its old form.
  ['::', 96],
  // IPv4 behind a translator.
  ['64:ff9b::', 96],
  ['fc00::', 7],
  ['fe80::', 10],
  ['ff00::', 8],
] as const) {
  INSIDE.addSubnet(network, bits, 'ipv6')
}

/** `host`: as in a URL. A name that is no address is not inside by itself. */
export function isInsideAddress(host: string): boolean {
  const address = host.replace(/^\[|\]$/g, '')
  const mapped = /^::ffff:(.+)$/i.exec(address)?.[1]
  if (mapped !== undefined) {
    return isIP(mapped) === 4 ? isInsideAddress(mapped) : true
  }
  const family = isIP(address)
  return family !== 0 && INSIDE.check(address, family === 4 ? 'ipv4' : 'ipv6')
}

/** Does a URL's host lie inside? A name that resolves to nothing does not. */
export async function isInside(host: string): Promise<boolean> {
  if (isIP(host.replace(/^\[|\]$/g, '')) !== 0) {
    return isInsideAddress(host)
  }
  const addresses = await new Promise<LookupAddress[]>((resolve) => {
    lookup(host, { all: true }, (error, found) => resolve(error === null ? found : []))
  })
  return addresses.some(({ address }) => isInsideAddress(address))
}

type Found = (error: NodeJS.ErrnoException | null, address: string | LookupAddress[], family?: number) => void

/** For connections that must lead out: asked as the connection is made, so that a name can't mean something else by then. */
export function lookupOutside(host: string, options: LookupOptions, found: Found): void {
  lookup(host, { ...options, all: true }, (error, addresses) => {
    if (error !== null) {
      found(error, '')
      return
    }
    const outside = addresses.filter(({ address }) => !isInsideAddress(address))
    const [first] = outside
    if (first === undefined) {
      found(Object.assign(new Error('the name leads inside'), { code: 'EINSIDE' }), '')
    } else if (options.all === true) {
      found(null, outside)
    } else {
      found(null, first.address, first.family)
    }
  })
}
