/**
 * V8's settings for the local runtime, for even latency (`npm run bench:edge` shows it). workerd takes them in its configuration and
 * Miniflare, which writes that, has no option for them; so they are added to the message that it hands over. Runs in Node.
 */

import { Runtime } from 'miniflare'

/**
 * A new space of 2 MB is collected often and for a millisecond, where V8's own 16 MB stop all requests for ten; old space is
 * first collected at 128 MB, about every 40,000 requests, because V8 then also throws away compiled code that it needs again.
 */
const FLAGS = ['--max-semi-space-size=2', '--initial-heap-size=128']

const WORD = 8
/** Of the list `v8Flags` in workerd's `struct Config` (workerd.capnp). */
const FLAGS_POINTER = 2
/** Cap'n Proto's encoding: pointer kinds and element sizes. https://capnproto.org/encoding.html */
const [LIST, FAR] = [1n, 2n]
const [BYTES, POINTERS] = [2n, 6n]

/** Runtimes that this process starts from now on get the flags. */
export function setV8Flags(): void {
  const { updateConfig } = Runtime.prototype
  Runtime.prototype.updateConfig = function updateWithFlags(config, ...rest) {
    return updateConfig.call(this, withV8Flags(config, FLAGS), ...rest)
  }
}

/** The message as it was where it isn't of the known layout, or has flags already: they only make it faster. */
export function withV8Flags(message: Buffer, flags: readonly string[]): Buffer {
  const segments = message.readUInt32LE(0) + 1
  const tableBytes = Math.ceil((4 + 4 * segments) / WORD) * WORD
  const root = message.readBigUInt64LE(tableBytes)
  const pointers = Number((root >> 48n) & 0xffffn)
  const isStruct = (root & 3n) === 0n && root !== 0n
  const structWord = 1 + Number(BigInt.asIntN(30, root >> 2n))
  const slot = tableBytes + (structWord + Number((root >> 32n) & 0xffffn) + FLAGS_POINTER) * WORD
  if (!isStruct || pointers <= FLAGS_POINTER || message.readBigUInt64LE(slot) !== 0n) {
    return message
  }
  const added = flagsSegment(flags)
  const head = Buffer.alloc(Math.ceil((4 + 4 * (segments + 1)) / WORD) * WORD)
  message.copy(head, 0, 0, 4 + 4 * segments)
  head.writeUInt32LE(segments, 0)
  head.writeUInt32LE(added.length / WORD, 4 + 4 * segments)
  const body = Buffer.from(message.subarray(tableBytes))
  body.writeBigUInt64LE(FAR | (BigInt(segments) << 32n), slot - tableBytes)
  return Buffer.concat([head, body, added])
}

/** A list pointer, which the far pointer leads to, then a pointer for each text, then the texts. */
function flagsSegment(flags: readonly string[]): Buffer {
  const texts = flags.map((flag) => {
    const bytes = Buffer.from(`${flag}\0`)
    return { length: bytes.length, padded: Buffer.concat([bytes], Math.ceil(bytes.length / WORD) * WORD) }
  })
  const pointers = Buffer.alloc((1 + texts.length) * WORD)
  pointers.writeBigUInt64LE(listPointer(0, POINTERS, texts.length), 0)
  let textWord = 1 + texts.length
  for (const [i, { length, padded }] of texts.entries()) {
    pointers.writeBigUInt64LE(listPointer(textWord - (i + 2), BYTES, length), (i + 1) * WORD)
    textWord += padded.length / WORD
  }
  return Buffer.concat([pointers, ...texts.map(({ padded }) => padded)])
}

/** `offset` in words, from the end of the pointer. */
function listPointer(offset: number, elements: bigint, count: number): bigint {
  return LIST | (BigInt(offset) << 2n) | (elements << 32n) | (BigInt(count) << 35n)
}
