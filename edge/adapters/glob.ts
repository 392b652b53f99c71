/** Patterns in scopes: `*` stands for any text, everything else for itself. Pure. */

/** Linear in text times stars, whatever the pattern: no regular expression is made from an operator's text. */
export function matchesGlob(pattern: string, text: string): boolean {
  let p = 0
  let t = 0
  let star = -1
  let resumeAt = 0
  while (t < text.length) {
    if (pattern[p] === '*') {
      star = p++
      resumeAt = t
    } else if (pattern[p] === text[t]) {
      p++
      t++
    } else if (star >= 0) {
      // Let the last star take one character more.
      p = star + 1
      t = ++resumeAt
    } else {
      return false
    }
  }
  while (pattern[p] === '*') {
    p++
  }
  return p === pattern.length
}
