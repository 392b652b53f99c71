/**
 * Splits an answer into text and tool calls as it arrives. Feed it text of any length: what comes out, joined, is the same
 * for any cutting. Space around calls is dropped. What looks like a call and names no offered tool is text.
 *
 *   const parser = createToolParser(format, ['get_time'])
 *   parser.push('<tool_call>{"name": "get_time", "argu')   // [{ kind: 'call', index: 0, name: 'get_time' }]
 *   parser.push('ments": {"zone"')                         // [{ kind: 'arguments', index: 0, text: '{"zone"' }]
 */

import { CallReader } from './call-reader.ts'
import type { ToolFormat } from './tool-format.ts'

export type ToolEvent =
  | { kind: 'content'; text: string }
  | { kind: 'call'; index: number; name: string }
  /** More of the JSON text of call `index`'s arguments. */
  | { kind: 'arguments'; index: number; text: string }

export interface ToolParser {
  push(text: string): ToolEvent[]
  /** No more text comes. */
  end(): ToolEvent[]
  /** Calls begun so far. */
  readonly calls: number
}

type State =
  /** `held`: space, then what may be the beginning of `open`. */
  | { kind: 'text'; held: string }
  /** After `open` or a separator: a call should begin. */
  | { kind: 'before_call' }
  | { kind: 'call'; reader: CallReader; announced: boolean }
  /** After a call: `matched` characters of `close` have come. */
  | { kind: 'after_call'; matched: number }

const SPACE = /\s/

export function createToolParser(format: ToolFormat, tools: Iterable<string>): ToolParser {
  return new Parser(format, new Set(tools))
}

class Parser implements ToolParser {
  calls = 0
  readonly #format: ToolFormat
  readonly #tools: ReadonlySet<string>
  readonly #argumentKeys = ['arguments', 'parameters']
  #state: State = { kind: 'text', held: '' }
  /** Text since `open`, as long as it may still turn out to be no call. */
  #raw = ''
  /** Nothing but space has been text or call yet. */
  #atStart = true
  /** The last thing was a call: space after it is dropped. */
  #afterCall = false
  #events: ToolEvent[] = []

  constructor(format: ToolFormat, tools: ReadonlySet<string>) {
    this.#format = format
    this.#tools = tools
  }

  push(text: string): ToolEvent[] {
    for (const char of text) {
      this.#push(char)
    }
    return this.#take()
  }

  end(): ToolEvent[] {
    const state = this.#state
    // An answer that was cut off where the next call was to begin has no text there.
    if (!this.#afterCall) {
      if (state.kind === 'text') {
        this.#content(state.held)
      } else if (state.kind === 'before_call' || (state.kind === 'call' && !state.announced)) {
        this.#content(this.#raw)
      }
    }
    this.#state = { kind: 'text', held: '' }
    return this.#take()
  }

  #take(): ToolEvent[] {
    const events = this.#events
    this.#events = []
    return events
  }

  #push(char: string): void {
    const state = this.#state
    switch (state.kind) {
      case 'text':
        this.#inText(state, char)
        break
      case 'before_call':
        this.#raw += char
        if (char === '{') {
          this.#state = { kind: 'call', reader: new CallReader(this.#argumentKeys), announced: false }
        } else if (!SPACE.test(char) && !(this.#format.inArray && char === '[')) {
          this.#noCall()
        }
        break
      case 'call':
        this.#inCall(state, char)
        break
      case 'after_call':
        this.#afterOne(state, char)
        break
    }
  }

  #inText(state: Extract<State, { kind: 'text' }>, char: string): void {
    const { open } = this.#format
    if (open === '') {
      if (this.#atStart && char === '{') {
        this.#raw = state.held + char
        this.#state = { kind: 'call', reader: new CallReader(this.#argumentKeys), announced: false }
        return
      }
      this.#hold(state, char, false)
      return
    }
    const space = state.held.length - state.held.trimStart().length
    const begun = state.held.slice(space) + char
    if (open === begun) {
      this.#raw = state.held + char
      this.#state = { kind: 'before_call' }
    } else {
      this.#hold(state, char, open.startsWith(begun))
    }
  }

  /** `mayOpen`: with this character the held text still begins `open`. */
  #hold(state: Extract<State, { kind: 'text' }>, char: string, mayOpen: boolean): void {
    if (mayOpen) {
      state.held += char
      return
    }
    const begun = state.held.trimStart()
    if (begun !== '') {
      // Not `open` after all: its first character is text, the rest is looked at again.
      const space = state.held.slice(0, state.held.length - begun.length)
      const [first = '', ...rest] = begun
      state.held = ''
      this.#content((this.#afterCall ? '' : space) + first)
      for (const again of [...rest, char]) {
        this.#push(again)
      }
      return
    }
    if (SPACE.test(char)) {
      state.held += char
      return
    }
    const held = this.#afterCall ? '' : state.held
    state.held = ''
    this.#content(held + char)
  }

  #inCall(state: Extract<State, { kind: 'call' }>, char: string): void {
    const { reader } = state
    this.#raw += char
    const progress = reader.push(char)
    if (!state.announced && reader.name !== undefined) {
      if (!this.#tools.has(reader.name)) {
        this.#noCall()
        return
      }
      state.announced = true
      this.#atStart = false
      this.#events.push({ kind: 'call', index: this.calls, name: reader.name })
      this.calls += 1
      this.#raw = ''
    }
    if (state.announced) {
      this.#arguments(reader.takeArguments())
    }
    if (progress === 'bad' || (progress === 'done' && !state.announced)) {
      this.#noCall()
    } else if (progress === 'done') {
      this.#afterCall = true
      this.#state = { kind: 'after_call', matched: 0 }
    }
  }

  #afterOne(state: Extract<State, { kind: 'after_call' }>, char: string): void {
    const { close, separator, inArray } = this.#format
    if (close[state.matched] === char) {
      state.matched += 1
      if (state.matched === close.length) {
        this.#state = { kind: 'text', held: '' }
      }
    } else if (SPACE.test(char) && state.matched === 0) {
      return
    } else if (separator !== '' && char === separator) {
      this.#raw = char
      this.#state = { kind: 'before_call' }
    } else if (inArray && char === ']') {
      this.#state = { kind: 'text', held: '' }
    } else {
      // The call was not closed as it should be; what follows is text.
      const missed = close.slice(0, state.matched)
      this.#state = { kind: 'text', held: '' }
      for (const again of missed + char) {
        this.#push(again)
      }
    }
  }

  #noCall(): void {
    const raw = this.#afterCall ? this.#raw.trimStart() : this.#raw
    this.#raw = ''
    this.#state = { kind: 'text', held: '' }
    this.#content(raw)
  }

  #content(text: string): void {
    if (text === '') {
      return
    }
    this.#atStart = false
    this.#afterCall = false
    const last = this.#events.at(-1)
    if (last?.kind === 'content') {
      last.text += text
    } else {
      this.#events.push({ kind: 'content', text })
    }
  }

  #arguments(text: string): void {
    const index = this.calls - 1
    const last = this.#events.at(-1)
    if (text === '') {
      return
    }
    if (last?.kind === 'arguments' && last.index === index) {
      last.text += text
    } else {
      this.#events.push({ kind: 'arguments', index, text })
    }
  }
}
