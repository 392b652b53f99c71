/** Reads one call, a JSON object, as it arrives: its name, and the text of its arguments piece by piece. */

export type CallProgress = 'more' | 'done' | 'bad'

type State =
  | { kind: 'before_key' }
  | { kind: 'key'; raw: string; escaped: boolean }
  | { kind: 'colon'; key: string }
  | { kind: 'before_value'; key: string }
  | { kind: 'string'; key: string; raw: string; escaped: boolean }
  /** An object, array, number or word; `depth` counts open brackets. */
  | { kind: 'value'; key: string; depth: number; inString: boolean; escaped: boolean }
  | { kind: 'after_value' }
  | { kind: 'done' }

const SPACE = /\s/
/** A name, or a key: no tool's is near this. */
const MAX_STRING = 1024

export class CallReader {
  /** Set once it is complete. */
  name: string | undefined
  /** Arguments read since the last `takeArguments`. */
  #arguments = ''
  #state: State = { kind: 'before_key' }
  readonly #argumentKeys: readonly string[]

  /** Starts after the call's opening brace. */
  constructor(argumentKeys: readonly string[]) {
    this.#argumentKeys = argumentKeys
  }

  takeArguments(): string {
    const taken = this.#arguments
    this.#arguments = ''
    return taken
  }

  push(char: string): CallProgress {
    const state = this.#state
    switch (state.kind) {
      case 'before_key':
        return this.#skipSpaceOr(char, () => {
          if (char === '"') {
            return this.#to({ kind: 'key', raw: '"', escaped: false })
          }
          return char === '}' ? this.#to({ kind: 'done' }, 'done') : 'bad'
        })
      case 'key': {
        const key = this.#readString(state, char)
        return key === undefined ? (state.raw.length > MAX_STRING ? 'bad' : 'more') : this.#to({ kind: 'colon', key })
      }
      case 'colon':
        return this.#skipSpaceOr(char, () =>
          char === ':' ? this.#to({ kind: 'before_value', key: state.key }) : 'bad',
        )
      case 'before_value':
        return this.#skipSpaceOr(char, () => this.#startValue(state.key, char))
      case 'string':
        return this.#inStringValue(state, char)
      case 'value':
        return this.#inValue(state, char)
      case 'after_value':
        return this.#skipSpaceOr(char, () => {
          if (char === ',') {
            return this.#to({ kind: 'before_key' })
          }
          return char === '}' ? this.#to({ kind: 'done' }, 'done') : 'bad'
        })
      case 'done':
        return 'bad'
    }
  }

  #to(state: State, progress: CallProgress = 'more'): CallProgress {
    this.#state = state
    return progress
  }

  #skipSpaceOr(char: string, otherwise: () => CallProgress): CallProgress {
    return SPACE.test(char) ? 'more' : otherwise()
  }

  #startValue(key: string, char: string): CallProgress {
    if (char === '"') {
      return this.#to({ kind: 'string', key, raw: '"', escaped: false })
    }
    if (key === 'name' || char === ',' || char === '}') {
      return 'bad'
    }
    this.#keep(key, char)
    return this.#to({ kind: 'value', key, depth: '{['.includes(char) ? 1 : 0, inString: false, escaped: false })
  }

  /** Some models write the arguments as a string of JSON, as OpenAI's API does. */
  #inStringValue(state: Extract<State, { kind: 'string' }>, char: string): CallProgress {
    const text = this.#readString(state, char)
    if (text === undefined) {
      return state.key === 'name' && state.raw.length > MAX_STRING ? 'bad' : 'more'
    }
    if (state.key === 'name') {
      this.name = text
    } else {
      this.#keep(state.key, text)
    }
    return this.#to({ kind: 'after_value' })
  }

  #inValue(state: Extract<State, { kind: 'value' }>, char: string): CallProgress {
    if (state.inString) {
      this.#keep(state.key, char)
      if (state.escaped) {
        state.escaped = false
      } else if (char === '\\') {
        state.escaped = true
      } else if (char === '"') {
        state.inString = false
      }
      return 'more'
    }
    if (state.depth === 0 && (char === ',' || char === '}' || SPACE.test(char))) {
      this.#state = { kind: 'after_value' }
      return this.push(char)
    }
    this.#keep(state.key, char)
    if (char === '"') {
      state.inString = true
    } else if (char === '{' || char === '[') {
      state.depth += 1
    } else if (char === '}' || char === ']') {
      state.depth -= 1
      if (state.depth === 0) {
        this.#state = { kind: 'after_value' }
      }
    }
    return 'more'
  }

  #keep(key: string, text: string): void {
    if (this.#argumentKeys.includes(key)) {
      this.#arguments += text
    }
  }

  /** The string's value once its closing quote has come. */
  #readString(state: { raw: string; escaped: boolean }, char: string): string | undefined {
    state.raw += char
    if (state.escaped) {
      state.escaped = false
      return undefined
    }
    if (char === '\\') {
      state.escaped = true
      return undefined
    }
    return char === '"' ? parseString(state.raw) : undefined
  }
}

function parseString(raw: string): string {
  try {
    return String(JSON.parse(raw))
  } catch {
    // A stray escape or control character: the text as it stands is the best there is.
    return raw.slice(1, -1)
  }
}
