/**
 * Python's pickle, of protocols 2 to 5, as far as torch's files of tensors go: a stack machine with the instructions that
 * build dicts, lists, tuples, strings and numbers. What a global, a call or a persistent id means is the caller's to say;
 * objects have no attributes here, and nothing that a pickle builds can change what the caller made.
 */

import { printable, WeightFileError } from './raw-tensor.ts'

/** A state dict of 20,000 tensors, the most that is read, takes 700,000 instructions and 140,000 containers. */
const MAX_INSTRUCTIONS = 2_000_000
const MAX_CONTAINERS = 500_000
/** In numbers: what is longer is no size of anything. */
const MAX_NUMBER_BYTES = 8

const UTF_8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** What REDUCE may call. Only the caller can make one. */
export class PickleFunction {
  readonly call: (args: readonly unknown[]) => unknown
  constructor(call: (args: readonly unknown[]) => unknown) {
    this.call = call
  }
}

export interface PickleNames {
  /** A PickleFunction, or a value; throws for what is not allowed. */
  global(module: unknown, name: unknown): unknown
  persistent(id: unknown): unknown
}

/** Dicts are Maps; lists and tuples are arrays. `end` is the byte after the pickle. Throws WeightFileError. */
export function runPickle(bytes: Uint8Array, start: number, names: PickleNames): { value: unknown; end: number } {
  const machine = new PickleMachine(bytes, start, names)
  for (let count = 0; ; count++) {
    if (count === MAX_INSTRUCTIONS) {
      throw unreadable(`it has more than ${MAX_INSTRUCTIONS} instructions`)
    }
    const at = machine.position
    const code = machine.byte()
    if (code === STOP) {
      return { value: machine.pop(), end: machine.position }
    }
    const instruction = INSTRUCTIONS[code]
    if (instruction === undefined) {
      throw unreadable(`instruction 0x${code.toString(16)} at byte ${at} is none that tensors need`)
    }
    instruction(machine)
  }
}

class PickleMachine {
  readonly names: PickleNames
  readonly memo = new Map<number, unknown>()
  position: number
  readonly #bytes: Uint8Array
  readonly #view: DataView
  readonly #stack: unknown[] = []
  /** How high the stack was at each MARK. */
  readonly #marks: number[] = []
  #containers = 0

  constructor(bytes: Uint8Array, start: number, names: PickleNames) {
    this.#bytes = bytes
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.position = start
    this.names = names
  }

  push(value: unknown): void {
    this.#stack.push(value)
  }

  /** A new dict, list or tuple. */
  pushNew(container: unknown[] | Map<unknown, unknown>): void {
    this.#containers++
    if (this.#containers > MAX_CONTAINERS) {
      throw unreadable(`it builds more than ${MAX_CONTAINERS} dicts, lists and tuples`)
    }
    this.#stack.push(container)
  }

  pop(): unknown {
    this.#needAboveMark(1)
    return this.#stack.pop()
  }

  top(): unknown {
    this.#needAboveMark(1)
    return this.#stack.at(-1)
  }

  mark(): void {
    this.#marks.push(this.#stack.length)
  }

  /** What was pushed since the last MARK. */
  popToMark(): unknown[] {
    const height = this.#marks.pop()
    if (height === undefined) {
      throw unreadable('it takes what was pushed since a mark, but there is none')
    }
    return this.#stack.splice(height)
  }

  popMany(count: number): unknown[] {
    this.#needAboveMark(count)
    return this.#stack.splice(this.#stack.length - count)
  }

  byte(): number {
    return this.#view.getUint8(this.#skip(1))
  }

  uint16(): number {
    return this.#view.getUint16(this.#skip(2), true)
  }

  int32(): number {
    return this.#view.getInt32(this.#skip(4), true)
  }

  uint32(): number {
    return this.#view.getUint32(this.#skip(4), true)
  }

  /** Rounded beyond 2^53, where no length can be. */
  uint64(): number {
    return Number(this.#view.getBigUint64(this.#skip(8), true))
  }

  float64(): number {
    return this.#view.getFloat64(this.#skip(8))
  }

  /** Two's complement, little-endian. */
  long(bytes: number): number {
    if (bytes > MAX_NUMBER_BYTES) {
      throw unreadable(`a number has ${bytes} bytes; the limit is ${MAX_NUMBER_BYTES}`)
    }
    const at = this.#skip(bytes)
    let value = 0n
    for (let i = bytes - 1; i >= 0; i--) {
      value = (value << 8n) | BigInt(this.#bytes[at + i]!)
    }
    return Number(BigInt.asIntN(8 * bytes, value))
  }

  text(bytes: number): string {
    const at = this.#skip(bytes)
    try {
      return UTF_8.decode(this.#bytes.subarray(at, at + bytes))
    } catch (cause) {
      throw unreadable(`the ${bytes} bytes of text at ${at} are no UTF-8`, cause)
    }
  }

  line(): string {
    const end = this.#bytes.indexOf(0x0a, this.position)
    if (end < 0) {
      throw unreadable(`the line at byte ${this.position} has no end`)
    }
    const text = this.text(end - this.position)
    this.position++
    return text
  }

  #skip(bytes: number): number {
    const at = this.position
    if (bytes > this.#bytes.byteLength - at) {
      throw unreadable(`it ends at byte ${this.#bytes.byteLength}, before the ${bytes} bytes at ${at}`)
    }
    this.position = at + bytes
    return at
  }

  #needAboveMark(count: number): void {
    if (this.#stack.length - (this.#marks.at(-1) ?? 0) < count) {
      throw unreadable('it takes more from its stack than was pushed')
    }
  }
}

const STOP = 0x2e

/** By their code; the names are those of Python's pickletools. */
const INSTRUCTIONS: Record<number, (machine: PickleMachine) => void> = {
  128: (m) => checkProtocol(m.byte()), // PROTO
  149: (m) => void m.uint64(), // FRAME: a length that serves readers of streams

  40: (m) => m.mark(), // MARK
  113: (m) => void m.memo.set(m.byte(), m.top()), // BINPUT
  114: (m) => void m.memo.set(m.uint32(), m.top()), // LONG_BINPUT
  148: (m) => void m.memo.set(m.memo.size, m.top()), // MEMOIZE
  104: (m) => m.push(remembered(m, m.byte())), // BINGET
  106: (m) => m.push(remembered(m, m.uint32())), // LONG_BINGET

  78: (m) => m.push(null), // NONE
  136: (m) => m.push(true), // NEWTRUE
  137: (m) => m.push(false), // NEWFALSE
  74: (m) => m.push(m.int32()), // BININT
  75: (m) => m.push(m.byte()), // BININT1
  77: (m) => m.push(m.uint16()), // BININT2
  138: (m) => m.push(m.long(m.byte())), // LONG1
  139: (m) => m.push(m.long(m.uint32())), // LONG4
  71: (m) => m.push(m.float64()), // BINFLOAT
  84: (m) => m.push(m.text(m.uint32())), // BINSTRING
  85: (m) => m.push(m.text(m.byte())), // SHORT_BINSTRING
  88: (m) => m.push(m.text(m.uint32())), // BINUNICODE
  140: (m) => m.push(m.text(m.byte())), // SHORT_BINUNICODE
  141: (m) => m.push(m.text(m.uint64())), // BINUNICODE8

  41: (m) => m.pushNew([]), // EMPTY_TUPLE
  133: (m) => m.pushNew(m.popMany(1)), // TUPLE1
  134: (m) => m.pushNew(m.popMany(2)), // TUPLE2
  135: (m) => m.pushNew(m.popMany(3)), // TUPLE3
  116: (m) => m.pushNew(m.popToMark()), // TUPLE
  93: (m) => m.pushNew([]), // EMPTY_LIST
  97: (m) => append(m, m.popMany(1)), // APPEND
  101: (m) => append(m, m.popToMark()), // APPENDS
  125: (m) => m.pushNew(new Map()), // EMPTY_DICT
  115: (m) => setItems(m, m.popMany(2)), // SETITEM
  117: (m) => setItems(m, m.popToMark()), // SETITEMS

  99: (m) => m.push(m.names.global(m.line(), m.line())), // GLOBAL
  147: (m) => m.push(m.names.global(...(m.popMany(2) as [unknown, unknown]))), // STACK_GLOBAL
  81: (m) => m.push(m.names.persistent(m.pop())), // BINPERSID
  82: (m) => reduce(m, m.popMany(2)), // REDUCE
  98: (m) => passOverState(m), // BUILD
}

function checkProtocol(version: number): void {
  if (version > 5) {
    throw unreadable(`its protocol is ${version}; known are those up to 5`)
  }
}

function remembered(machine: PickleMachine, index: number): unknown {
  if (!machine.memo.has(index)) {
    throw unreadable(`it remembers nothing under ${index}`)
  }
  return machine.memo.get(index)
}

function append(machine: PickleMachine, items: unknown[]): void {
  const list = machine.top()
  if (!Array.isArray(list)) {
    throw unreadable('it appends to what is no list')
  }
  // No spread: arguments lie on the call stack.
  for (const item of items) {
    list.push(item)
  }
}

function setItems(machine: PickleMachine, items: unknown[]): void {
  const dict = machine.top()
  if (!(dict instanceof Map) || items.length % 2 !== 0) {
    throw unreadable('it sets items of what is no dict, or a key without a value')
  }
  for (let i = 0; i < items.length; i += 2) {
    dict.set(items[i], items[i + 1])
  }
}

function reduce(machine: PickleMachine, [callee, args]: unknown[]): void {
  if (!(callee instanceof PickleFunction) || !Array.isArray(args)) {
    throw unreadable('it calls what is no function')
  }
  machine.push(callee.call(args))
}

/** torch gives state dicts an attribute (`_metadata`), which says nothing about tensors; other objects' state is not known here. */
function passOverState(machine: PickleMachine): void {
  machine.pop()
  if (!(machine.top() instanceof Map)) {
    throw unreadable('it gives attributes to what is no dict')
  }
}

function unreadable(why: string, cause?: unknown): WeightFileError {
  return new WeightFileError(`the pickle can't be read: ${printable(why)}`, { cause })
}
