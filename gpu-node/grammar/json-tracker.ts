/** Follows a text that is known to be JSON, byte by byte: which string it is in, and how long that is by now. */

import { type LengthBound, type LengthNode, resolveNode } from './length-bounds.ts'

interface Frame {
  node: LengthNode | undefined
  isArray: boolean
  /** Array: position of the current item. */
  index: number
  /** Object: the current property, once it has been read. */
  key: string
  expectsKey: boolean
}

const QUOTE = 0x22
const BACKSLASH = 0x5c
const decoder = new TextDecoder()

export class JsonTracker {
  /** Of the value string that the text is in; `undefined`: in none, or in one without bounds. */
  bound: LengthBound | undefined
  /** Its characters so far; an escape is one. */
  length = 0
  /** The text ends after a backslash. */
  escaped = false
  /** A string was longer or shorter than its bound. */
  violated = false
  #inString = false
  #keyBytes: number[] | undefined
  #frames: Frame[] = []
  readonly #root: LengthNode

  constructor(root: LengthNode) {
    this.#root = root
  }

  clone(): JsonTracker {
    const copy = new JsonTracker(this.#root)
    copy.bound = this.bound
    copy.length = this.length
    copy.escaped = this.escaped
    copy.violated = this.violated
    copy.#inString = this.#inString
    copy.#keyBytes = this.#keyBytes?.slice()
    copy.#frames = this.#frames.map((frame) => ({ ...frame }))
    return copy
  }

  push(bytes: Uint8Array): void {
    for (const byte of bytes) {
      if (this.#inString) {
        this.#string(byte)
      } else {
        this.#structure(byte)
      }
    }
  }

  #string(byte: number): void {
    if (byte === QUOTE && !this.escaped) {
      this.#endString()
      return
    }
    this.#keyBytes?.push(byte)
    if (this.escaped) {
      this.escaped = false
      return
    }
    this.escaped = byte === BACKSLASH
    // A character counts at its first byte.
    if ((byte & 0xc0) !== 0x80) {
      this.length += 1
      if (this.bound?.max !== undefined && this.length > this.bound.max) {
        this.violated = true
      }
    }
  }

  #endString(): void {
    this.#inString = false
    const frame = this.#frames.at(-1)
    if (this.#keyBytes !== undefined && frame !== undefined) {
      frame.key = JSON.parse(`"${decoder.decode(Uint8Array.from(this.#keyBytes))}"`)
      this.#keyBytes = undefined
    } else if (this.bound !== undefined && this.length < this.bound.min) {
      this.violated = true
    }
    this.bound = undefined
  }

  #structure(byte: number): void {
    const frame = this.#frames.at(-1)
    switch (String.fromCharCode(byte)) {
      case '"':
        this.#inString = true
        this.length = 0
        if (frame?.expectsKey === true) {
          this.#keyBytes = []
        } else {
          this.bound = this.#here()?.bound
        }
        break
      case '{':
        this.#frames.push({ node: this.#here(), isArray: false, index: 0, key: '', expectsKey: true })
        break
      case '[':
        this.#frames.push({ node: this.#here(), isArray: true, index: 0, key: '', expectsKey: false })
        break
      case '}':
      case ']':
        this.#frames.pop()
        break
      case ':':
        if (frame !== undefined) {
          frame.expectsKey = false
        }
        break
      case ',':
        if (frame !== undefined) {
          frame.index += 1
          frame.expectsKey = !frame.isArray
        }
    }
  }

  /** The node of the value that begins here. */
  #here(): LengthNode | undefined {
    const frame = this.#frames.at(-1)
    if (frame === undefined) {
      return resolveNode(this.#root)
    }
    const { node } = frame
    return resolveNode(
      frame.isArray
        ? (node?.prefix?.[frame.index] ?? node?.items)
        : (node?.properties?.get(frame.key) ?? node?.additional),
    )
  }
}
