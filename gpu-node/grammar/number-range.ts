/**
 * Numbers between two bounds as grammars over their decimal digits. Bounded numbers have no exponent: a range says what
 * size they have.
 */

import { chars } from './char-set.ts'
import { choice, type Expr, NOTHING, oneOf, optional, repeat, sequence, text } from './expr.ts'
import { grammarInvalid } from './grammar-error.ts'
import { DIGIT } from './json-text.ts'

export interface Bound {
  value: number
  exclusive: boolean
}

/** Together with six fraction digits no number in range rounds, as a double, to a bound below a thousand million. */
const MAX_DIGITS = 15
const MAX_FRACTION_DIGITS = 6
const EXACT_BOUND = 1e9
const ZERO_OR_MORE_ZEROS = repeat(text('0'), 0, MAX_FRACTION_DIGITS)

export function integerBetween(low: Bound | undefined, high: Bound | undefined): Expr {
  const from = low === undefined ? undefined : low.exclusive ? Math.floor(low.value) + 1 : Math.ceil(low.value)
  const to = high === undefined ? undefined : high.exclusive ? Math.ceil(high.value) - 1 : Math.floor(high.value)
  for (const bound of [from, to]) {
    if (bound !== undefined && !Number.isSafeInteger(bound)) {
      throw grammarInvalid(`an integer bound of ${bound} is beyond ±2^53`)
    }
  }
  const upper = to ?? Number.MAX_SAFE_INTEGER
  const lower = from ?? -Number.MAX_SAFE_INTEGER
  return choice(naturalBetween(Math.max(0, lower), upper), negative(naturalBetween(Math.max(1, -upper), -lower)))
}

function negative(magnitude: Expr): Expr {
  return sequence(text('-'), magnitude)
}

/** Integers in [low, high], both at least 0. */
function naturalBetween(low: number, high: number): Expr {
  if (low > high) {
    return NOTHING
  }
  const parts: Expr[] = []
  const lowText = String(low)
  const highText = String(high)
  for (let length = lowText.length; length <= highText.length; length++) {
    const first = length === lowText.length ? lowText : `1${'0'.repeat(length - 1)}`
    const last = length === highText.length ? highText : '9'.repeat(length)
    parts.push(digitsBetween(first, last))
  }
  return choice(...parts)
}

/** Digit strings of one length between `low` and `high`, both included. */
function digitsBetween(low: string, high: string): Expr {
  const [lowFirst, highFirst] = [low[0], high[0]]
  if (lowFirst === undefined || highFirst === undefined) {
    return text('')
  }
  const [lowRest, highRest] = [low.slice(1), high.slice(1)]
  if (lowFirst === highFirst) {
    return sequence(text(lowFirst), digitsBetween(lowRest, highRest))
  }
  const [zeros, nines] = ['0'.repeat(lowRest.length), '9'.repeat(lowRest.length)]
  const lowIsWhole = lowRest === zeros
  const highIsWhole = highRest === nines
  const from = Number(lowFirst) + (lowIsWhole ? 0 : 1)
  const to = Number(highFirst) - (highIsWhole ? 0 : 1)
  return choice(
    ...(lowIsWhole ? [] : [sequence(text(lowFirst), digitsBetween(lowRest, nines))]),
    ...(from <= to ? [sequence(digitRange(from, to), repeat(DIGIT, lowRest.length, lowRest.length))] : []),
    ...(highIsWhole ? [] : [sequence(text(highFirst), digitsBetween(zeros, highRest))]),
  )
}

function digitRange(from: number, to: number): Expr {
  return from === to ? text(String(from)) : oneOf(chars(`${from}-${to}`))
}

export function numberBetween(low: Bound | undefined, high: Bound | undefined): Expr {
  const upper = stepInside(high ?? { value: 10 ** MAX_DIGITS, exclusive: true }, -1)
  const lower = stepInside(low ?? { value: -(10 ** MAX_DIGITS), exclusive: true }, 1)
  return choice(
    magnitudeBetween(lower.value < 0 ? { value: 0, exclusive: false } : lower, upper),
    negative(
      magnitudeBetween(
        upper.value > 0 ? { value: 0, exclusive: true } : { value: -upper.value, exclusive: upper.exclusive },
        { value: -lower.value, exclusive: lower.exclusive },
      ),
    ),
  )
}

/** An excluded bound so large that a fraction below it might round to it. */
function stepInside(bound: Bound, step: number): Bound {
  return bound.exclusive && Math.abs(bound.value) > EXACT_BOUND
    ? { value: bound.value + step, exclusive: false }
    : bound
}

/** Decimals from `low` to `high`, both at least 0: whole part by whole part, then the fraction's digits. */
function magnitudeBetween(low: Bound, high: Bound): Expr {
  if (low.value > high.value || (low.value === high.value && (low.exclusive || high.exclusive))) {
    return NOTHING
  }
  const [lowWhole, lowFraction] = decimal(low.value)
  const [highWhole, highFraction] = decimal(high.value)
  if (lowWhole === highWhole) {
    const between = fractionBetween(lowFraction, low.exclusive, highFraction, high.exclusive)
    return sequence(text(String(lowWhole)), between)
  }
  return choice(
    sequence(text(String(lowWhole)), fractionAbove(lowFraction, low.exclusive)),
    sequence(
      naturalBetween(lowWhole + 1, highWhole - 1),
      optional(sequence(text('.'), repeat(DIGIT, 1, MAX_FRACTION_DIGITS))),
    ),
    sequence(text(String(highWhole)), fractionBelow(highFraction, high.exclusive)),
  )
}

/** Whole part and fraction digits (no trailing zeros) of a number that is at least 0. */
function decimal(value: number): [number, string] {
  if (value > 10 ** MAX_DIGITS) {
    throw grammarInvalid(`a number bound of ${value} is beyond ±10^${MAX_DIGITS}`)
  }
  // toString is the shortest exact spelling; below 1e-6 it has an exponent.
  const plain = String(value).includes('e') ? value.toFixed(20) : String(value)
  const [whole = '0', digits = ''] = plain.split('.')
  return [Number(whole), digits.replace(/0+$/, '')]
}

/** `.d…` (or nothing) whose value is above 0.`digits`, or equal to it unless `exclusive`. */
function fractionAbove(digits: string, exclusive: boolean): Expr {
  const above = sequence(text('.'), digitsAbove(digits, exclusive))
  return digits === '' && !exclusive ? choice(text(''), above) : above
}

function digitsAbove(digits: string, exclusive: boolean): Expr {
  const first = digits[0]
  if (first === undefined) {
    const nonZero = sequence(ZERO_OR_MORE_ZEROS, oneOf(chars('1-9')), anyDigits())
    return exclusive ? nonZero : repeat(DIGIT, 1, MAX_FRACTION_DIGITS)
  }
  const equal = digits.length === 1 ? sequence(text(first), endAbove(exclusive)) : undefined
  return choice(
    equal ?? sequence(text(first), digitsAbove(digits.slice(1), exclusive)),
    ...(first === '9' ? [] : [sequence(digitRange(Number(first) + 1, 9), anyDigits())]),
  )
}

/** After the bound's last digit: anything when equality counts, something above zero when it does not. */
function endAbove(exclusive: boolean): Expr {
  return exclusive ? sequence(ZERO_OR_MORE_ZEROS, oneOf(chars('1-9')), anyDigits()) : anyDigits()
}

/** `.d…` (or nothing) whose value is below 0.`digits`, or equal to it unless `exclusive`. */
function fractionBelow(digits: string, exclusive: boolean): Expr {
  if (digits === '') {
    return exclusive ? NOTHING : optional(sequence(text('.'), repeat(text('0'), 1, MAX_FRACTION_DIGITS)))
  }
  return choice(text(''), sequence(text('.'), digitsBelow(digits, exclusive)))
}

function digitsBelow(digits: string, exclusive: boolean): Expr {
  const first = digits[0]
  if (first === undefined) {
    return exclusive ? NOTHING : ZERO_OR_MORE_ZEROS
  }
  const rest = digits.slice(1)
  return choice(
    ...(first === '0' ? [] : [sequence(digitRange(0, Number(first) - 1), anyDigits())]),
    sequence(text(first), rest === '' ? digitsBelow('', exclusive) : choice(text(''), digitsBelow(rest, exclusive))),
  )
}

function fractionBetween(low: string, lowExclusive: boolean, high: string, highExclusive: boolean): Expr {
  const lowFirst = low[0] ?? '0'
  const highFirst = high[0] ?? '0'
  const whole = low === '' && !lowExclusive ? [text('')] : []
  if (low === high) {
    const zeros = repeat(text('0'), low === '' ? 1 : 0, MAX_FRACTION_DIGITS)
    return choice(...whole, sequence(text(`.${low}`), zeros))
  }
  return choice(...whole, sequence(text('.'), between(low, lowFirst, lowExclusive, high, highFirst, highExclusive)))
}

function between(
  low: string,
  lowFirst: string,
  lowExclusive: boolean,
  high: string,
  highFirst: string,
  highExclusive: boolean,
): Expr {
  const [lowRest, highRest] = [low.slice(1), high.slice(1)]
  if (lowFirst === highFirst) {
    const inner = between(lowRest, lowRest[0] ?? '0', lowExclusive, highRest, highRest[0] ?? '0', highExclusive)
    // Stopping here is the bound itself when the lower bound has no more digits.
    const stop = lowRest === '' && !lowExclusive ? [text('')] : []
    return sequence(text(lowFirst), choice(...stop, inner))
  }
  const lowBranch = lowRest === '' ? endAbove(lowExclusive) : digitsAbove(lowRest, lowExclusive)
  const highBranch =
    highRest === '' ? digitsBelow('', highExclusive) : choice(text(''), digitsBelow(highRest, highExclusive))
  const from = Number(lowFirst) + 1
  const to = Number(highFirst) - 1
  return choice(
    sequence(text(lowFirst), lowBranch),
    ...(from <= to ? [sequence(digitRange(from, to), anyDigits())] : []),
    sequence(text(highFirst), highBranch),
  )
}

function anyDigits(): Expr {
  return repeat(DIGIT, 0, MAX_FRACTION_DIGITS)
}
