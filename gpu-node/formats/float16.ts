/** Widens the float formats that weight files use to float32. All results are exact. Little-endian machines only, as ONNX Runtime. */

/** Floats by safetensors' names. F8_E4M3 is the "fn" variant: no infinities, NaN at 0x7f and 0xff. */
export const FLOAT_BYTES = { F64: 8, F32: 4, F16: 2, BF16: 2, F8_E4M3: 1, F8_E5M2: 1 } as const
export type FloatDtype = keyof typeof FLOAT_BYTES

export function isFloatDtype(dtype: string): dtype is FloatDtype {
  return Object.hasOwn(FLOAT_BYTES, dtype)
}

/**
 * Writes the numbers in `bytes` to `out` as float32 (F64 is rounded). `bytes` holds exactly `out.length` numbers; both may lie
 * in SharedArrayBuffers, and `bytes` at any offset.
 */
export function widenFloats(dtype: FloatDtype, bytes: Uint8Array, out: Float32Array): void {
  const size = FLOAT_BYTES[dtype]
  if (bytes.byteLength !== out.length * size) {
    throw new RangeError(`${out.length} ${dtype} numbers are ${out.length * size} bytes; given: ${bytes.byteLength}`)
  }
  // Typed arrays over several bytes need an aligned start.
  const source = bytes.byteOffset % size === 0 ? bytes : bytes.slice()
  const { buffer, byteOffset } = source
  switch (dtype) {
    case 'F32':
      out.set(new Float32Array(buffer, byteOffset, out.length))
      return
    case 'F64':
      out.set(new Float64Array(buffer, byteOffset, out.length))
      return
    case 'BF16':
      widenBf16(new Uint16Array(buffer, byteOffset, out.length), out)
      return
    case 'F16':
      widenByTable(f16Bits(), new Uint16Array(buffer, byteOffset, out.length), out)
      return
    case 'F8_E4M3':
      widenByTable(f8Bits(4), source, out)
      return
    case 'F8_E5M2':
      widenByTable(f8Bits(5), source, out)
      return
  }
}

function widenBf16(halves: Uint16Array, out: Float32Array): void {
  const bits = new Uint32Array(out.buffer, out.byteOffset, out.length)
  for (let i = 0; i < bits.length; i++) {
    bits[i] = halves[i]! << 16
  }
}

/** Copies bit patterns, not numbers: a NaN keeps its payload, and no float conversion happens on the way. */
function widenByTable(table: Uint32Array, codes: Uint16Array | Uint8Array, out: Float32Array): void {
  const bits = new Uint32Array(out.buffer, out.byteOffset, out.length)
  for (let i = 0; i < bits.length; i++) {
    bits[i] = table[codes[i]!]!
  }
}

const tables = new Map<string, Uint32Array>()

/** Float32 bits of all 65,536 halves; made once (256 KiB). */
function f16Bits(): Uint32Array {
  return cached('f16', () => smallFloatBits(5, 10, true))
}

function f8Bits(exponentBits: 4 | 5): Uint32Array {
  return cached(`f8e${exponentBits}`, () => smallFloatBits(exponentBits, 7 - exponentBits, exponentBits === 5))
}

function cached(key: string, make: () => Uint32Array): Uint32Array {
  const table = tables.get(key) ?? make()
  tables.set(key, table)
  return table
}

/** Bits of sign, exponent, mantissa (IEEE 754 layout); without `infinities` only the all-ones code is NaN (OCP E4M3). */
function smallFloatBits(exponentBits: number, mantissaBits: number, infinities: boolean): Uint32Array {
  const codes = 1 << (1 + exponentBits + mantissaBits)
  const bias = (1 << (exponentBits - 1)) - 1
  const maxExponent = (1 << exponentBits) - 1
  const maxMantissa = (1 << mantissaBits) - 1
  const values = new Float32Array(codes)
  const bits = new Uint32Array(values.buffer)
  for (let code = 0; code < codes; code++) {
    const sign = code >> (exponentBits + mantissaBits) === 0 ? 1 : -1
    const exponent = (code >> mantissaBits) & maxExponent
    const mantissa = code & maxMantissa
    if (exponent === maxExponent && infinities) {
      const fraction = mantissa << (23 - mantissaBits)
      bits[code] = ((sign < 0 ? 0x80000000 : 0) | 0x7f800000 | fraction) >>> 0
    } else if (exponent === maxExponent && mantissa === maxMantissa) {
      bits[code] = sign < 0 ? 0xffc00000 : 0x7fc00000
    } else if (exponent === 0) {
      values[code] = sign * mantissa * 2 ** (1 - bias - mantissaBits)
    } else {
      values[code] = sign * (1 + mantissa / (maxMantissa + 1)) * 2 ** (exponent - bias)
    }
  }
  return bits
}
