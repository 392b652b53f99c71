/** Writes safetensors files, and takes them apart, for tests that change them. */

import { parseSafetensorsHeader } from '../../gpu-node/formats/safetensors.ts'

export interface TestTensor {
  dtype: string
  shape: readonly number[]
  bytes: Uint8Array
}

export function tensorsOf(file: Uint8Array): Map<string, TestTensor> {
  const { tensors } = parseSafetensorsHeader(file, file.byteLength)
  return new Map(
    [...tensors].map(([name, { dtype, shape, begin, end }]) => [
      name,
      { dtype, shape, bytes: new Uint8Array(file.slice(begin, end)) },
    ]),
  )
}

export function safetensorsFile(tensors: ReadonlyMap<string, TestTensor>): Uint8Array {
  const header: Record<string, unknown> = {}
  let at = 0
  for (const [name, { dtype, shape, bytes }] of tensors) {
    header[name] = { dtype, shape, data_offsets: [at, at + bytes.length] }
    at += bytes.length
  }
  const text = Buffer.from(JSON.stringify(header))
  const padded = Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, ' ')])
  const length = Buffer.alloc(8)
  length.writeBigUInt64LE(BigInt(padded.length))
  return Buffer.concat([length, padded, ...[...tensors.values()].map(({ bytes }) => bytes)])
}
