import { setFloat16 } from '@petamoriken/float16'
import { expect, test } from 'vitest'
import { widenFloats } from '../../../gpu-node/formats/float16.ts'
import { halfBits, narrowToHalves } from '../../../gpu-node/formats/to-float16.ts'

const view = new DataView(new ArrayBuffer(4))
function expected(bits: number): number {
  view.setUint32(0, bits)
  setFloat16(view, 0, view.getFloat32(0))
  return view.getUint16(0)
}

test('every half comes back from float32 as it was', () => {
  const halves = Uint16Array.from({ length: 65_536 }, (_, code) => code)
  const floats = new Float32Array(halves.length)
  widenFloats('F16', new Uint8Array(halves.buffer), floats)
  const back = new Uint16Array(halves.length)
  expect(narrowToHalves(floats, back)).toBe(0)
  const isNan = (code: number) => (code & 0x7fff) > 0x7c00
  expect(halves.filter((code) => !isNan(code) && back[code] !== code)).toEqual(new Uint16Array(0))
  expect(halves.filter((code) => isNan(code) && !isNan(back[code]!))).toEqual(new Uint16Array(0))
})

test('rounds as the float16 package does: around every half, at ties, and on a walk over all float32 exponents', () => {
  const wrong: number[] = []
  const check = (bits: number) => {
    if ((bits & 0x7fffffff) >>> 0 <= 0x7f800000 && halfBits(bits) !== expected(bits)) {
      wrong.push(bits)
    }
  }
  for (let top = 0; top < 0x10000; top++) {
    for (const low of [0, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0xefff, 0xf000, 0xffff]) {
      check(((top << 16) | low) >>> 0)
    }
  }
  expect(wrong).toEqual([])
})

test('counts finite numbers that no half can hold', () => {
  const values = Float32Array.of(65_504, 65_519, 65_520, -1e9, Number.POSITIVE_INFINITY, 1)
  expect(narrowToHalves(values, new Uint16Array(6))).toBe(2)
})
