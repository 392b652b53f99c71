/** Base64url without padding (RFC 4648 §5), with what both Workers and Node have. */

/** Arguments of one call; engines allow tens of thousands. */
const CHUNK_BYTES = 8192

export function toBase64Url(bytes: Uint8Array): string {
  let binary = ''
  for (let at = 0; at < bytes.length; at += CHUNK_BYTES) {
    // Any list of numbers will do for `apply`; a spread would go through an iterator, byte by byte.
    binary += String.fromCharCode.apply(null, bytes.subarray(at, at + CHUNK_BYTES) as unknown as number[])
  }
  return latin1ToBase64Url(binary)
}

const encoder = new TextEncoder()

/** Of the text's UTF-8. */
export function textToBase64Url(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the range of ASCII.
  return /^[\x00-\x7f]*$/.test(text) ? latin1ToBase64Url(text) : toBase64Url(encoder.encode(text))
}

function latin1ToBase64Url(text: string): string {
  return btoa(text).replaceAll('+', '-').replaceAll('/', '_').replace(/=+$/, '')
}

/** `undefined` when the text is no base64url. */
export function fromBase64Url(text: string): Uint8Array<ArrayBuffer> | undefined {
  if (!/^[A-Za-z0-9_-]*$/.test(text) || text.length % 4 === 1) {
    return undefined
  }
  const binary = atob(text.replaceAll('-', '+').replaceAll('_', '/'))
  const bytes = new Uint8Array(binary.length)
  for (let i = 0; i < binary.length; i++) {
    bytes[i] = binary.charCodeAt(i)
  }
  return bytes
}
