/** Character ranges as the byte sequences of UTF-8 (RFC 3629 §3). */

export type ByteRange = readonly [number, number]

/** Ends of the ranges with one, two, three and four bytes. */
const LENGTH_ENDS = [0x7f, 0x7ff, 0xffff, 0x10ffff]

/** Sequences of byte ranges which together match exactly the characters `low … high`, neither of them a surrogate. */
export function utf8Ranges(low: number, high: number): ByteRange[][] {
  const end = LENGTH_ENDS.find((last) => low <= last) ?? high
  if (high > end) {
    return [...utf8Ranges(low, end), ...utf8Ranges(end + 1, high)]
  }
  // The last n bytes can range freely only over whole blocks of 64^n characters.
  for (let bits = 6; bits < 24; bits += 6) {
    const mask = (1 << bits) - 1
    if (low >> bits !== high >> bits) {
      if ((low & mask) !== 0) {
        return [...utf8Ranges(low, low | mask), ...utf8Ranges((low | mask) + 1, high)]
      }
      if ((high & mask) !== mask) {
        return [...utf8Ranges(low, (high & ~mask) - 1), ...utf8Ranges(high & ~mask, high)]
      }
    }
  }
  const first = new TextEncoder().encode(String.fromCodePoint(low))
  const last = new TextEncoder().encode(String.fromCodePoint(high))
  return [[...first].map((byte, i): ByteRange => [byte, last[i] ?? byte])]
}
