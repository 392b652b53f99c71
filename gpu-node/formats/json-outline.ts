/**
 * What a JSON text holds, counted before it is parsed: a parser makes objects of everything, and of members with one name it
 * keeps the last without a word. A text that is no JSON gets counts that mean nothing; the parser refuses it.
 */

export interface JsonOutline {
  /** Objects and arrays. */
  containers: number
  /** Members of the outermost object. */
  members: number
  /** Members of the objects in it. */
  fields: number
}

const QUOTE = 0x22
const BACKSLASH = 0x5c
const COLON = 0x3a
/** Without this bit brackets are braces: `[` 5b, `]` 5d, `{` 7b, `}` 7d. */
const BRACE_BIT = 0x20
const OPENING = 0x7b
const CLOSING = 0x7d

export function outlineJson(text: Uint8Array): JsonOutline {
  const outline = { containers: 0, members: 0, fields: 0 }
  let depth = 0
  for (let at = 0; at < text.length; at++) {
    const byte = text[at]!
    if (byte === QUOTE) {
      at = endOfString(text, at + 1)
    } else if (byte === COLON) {
      outline.members += depth === 1 ? 1 : 0
      outline.fields += depth === 2 ? 1 : 0
    } else if ((byte | BRACE_BIT) === OPENING) {
      outline.containers++
      depth++
    } else if ((byte | BRACE_BIT) === CLOSING) {
      depth--
    }
  }
  return outline
}

/** The closing quote. */
function endOfString(text: Uint8Array, from: number): number {
  let at = from
  while (at < text.length && text[at] !== QUOTE) {
    at += text[at] === BACKSLASH ? 2 : 1
  }
  return at
}
