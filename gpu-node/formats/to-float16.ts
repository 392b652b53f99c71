/** Narrows float32 to float16, to the nearest and ties to even (IEEE 754); beyond 65,504 infinite. Little-endian machines only. */

/** Bits of the half nearest to the float32 with these bits. */
export function halfBits(bits: number): number {
  const sign = (bits >>> 16) & 0x8000
  const magnitude = bits & 0x7fffffff
  if (magnitude >= 0x477ff000) {
    // 65,520 and more round to infinity; a NaN stays one.
    return sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00)
  }
  if (magnitude >= 0x38800000) {
    const odd = (magnitude >>> 13) & 1
    return sign | ((magnitude + 0xfff + odd - (112 << 23)) >>> 13)
  }
  if (magnitude <= 0x33000000) {
    return sign
  }
  // Below 2^-14 halves are multiples of 2^-24.
  const shift = 126 - (magnitude >>> 23)
  const mantissa = (magnitude & 0x7fffff) | 0x800000
  const odd = (mantissa >>> shift) & 1
  return sign | ((mantissa + (1 << (shift - 1)) - 1 + odd) >>> shift)
}

/** Writes `values` to `out[at …]`; returns how many became infinite though they were finite. */
export function narrowToHalves(values: Float32Array, out: Uint16Array, at = 0): number {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length)
  let overflows = 0
  for (let i = 0; i < bits.length; i++) {
    const half = halfBits(bits[i]!)
    out[at + i] = half
    if ((half & 0x7fff) === 0x7c00 && (bits[i]! & 0x7fffffff) < 0x7f800000) {
      overflows++
    }
  }
  return overflows
}
