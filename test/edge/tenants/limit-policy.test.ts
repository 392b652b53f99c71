import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { promptSize } from '../../../edge/routes/request-size.ts'
import {
  type AdmissionAsk,
  admitOnce,
  createTenantLoad,
  LEASE_LIFE_MS,
  monthOf,
  renewLease,
  settle,
  type TenantLoad,
} from '../../../edge/tenants/limit-policy.ts'
import {
  addToMinute,
  createSlidingMinute,
  minuteTotal,
  secondsUntilTotal,
} from '../../../edge/tenants/sliding-minute.ts'
import type { Limits } from '../../../shared/edge-api.ts'

const NOON = Date.UTC(2026, 10, 23, 12)
const SMALL: AdmissionAsk = {
  promptTokens: 10,
  mostPromptTokens: 10,
  likelyNewTokens: 10,
  mostNewTokens: 10,
  sequences: 1,
}

function newLoad(now = NOON): TenantLoad {
  return createTenantLoad(monthOf(now), 0)
}

/** Decides and carries out. */
function ask(load: TenantLoad, limits: Limits, now: number, id: string = crypto.randomUUID(), size = SMALL) {
  return admitOnce(load, id, limits, size, now)
}

describe('requests per minute', () => {
  test('the sixth of five is refused until the first is a minute old', () => {
    const load = newLoad()
    const limits = { requestsPerMinute: 5 }
    for (let i = 0; i < 5; i++) {
      expect(ask(load, limits, NOON + i * 1000).admitted).toBe(true)
    }
    const refused = ask(load, limits, NOON + 5000)
    expect(refused).toMatchObject({ admitted: false, code: 'rate_limited', retryAfterSeconds: 56 })
    expect(ask(load, limits, NOON + 5000 + 55_000).admitted).toBe(false)
    expect(ask(load, limits, NOON + 5000 + 56_000).admitted).toBe(true)
  })

  test('never more than the limit in any sixty seconds, and the stated wait is enough', () => {
    const arrivals = fc.array(fc.integer({ min: 0, max: 20_000 }), { maxLength: 80 })
    fc.assert(
      fc.property(arrivals, fc.integer({ min: 1, max: 8 }), (gaps, requestsPerMinute) => {
        const load = newLoad()
        const admitted: number[] = []
        let now = NOON
        for (const gap of gaps) {
          now += gap
          const verdict = ask(load, { requestsPerMinute }, now)
          if (verdict.admitted) {
            admitted.push(now)
          } else {
            const later = structuredClone(load)
            expect(ask(later, { requestsPerMinute }, now + verdict.retryAfterSeconds * 1000).admitted).toBe(true)
          }
        }
        for (const end of admitted) {
          expect(admitted.filter((time) => time > end - 60_000 && time <= end).length).toBeLessThanOrEqual(
            requestsPerMinute,
          )
        }
      }),
    )
  })
})

describe('the sliding minute', () => {
  test('counts what a list of additions counts, within its one-second steps', () => {
    const steps = fc.array(fc.tuple(fc.integer({ min: 0, max: 30_000 }), fc.integer({ min: 0, max: 100 })))
    fc.assert(
      fc.property(steps, (additions) => {
        const minute = createSlidingMinute()
        const list: [number, number][] = []
        let now = NOON
        for (const [gap, amount] of additions) {
          now += gap
          addToMinute(minute, now, amount)
          list.push([now, amount])
          const sumWithin = (ms: number) => list.reduce((sum, [time, value]) => sum + (time > now - ms ? value : 0), 0)
          expect(minuteTotal(minute, now)).toBeGreaterThanOrEqual(sumWithin(60_000))
          expect(minuteTotal(minute, now)).toBeLessThanOrEqual(sumWithin(61_000))
          expect(minute.amounts.length).toBeLessThanOrEqual(61)
        }
        const target = minuteTotal(minute, now) / 2
        const wait = secondsUntilTotal(minute, now, target)
        expect(minuteTotal(minute, now + wait * 1000)).toBeLessThanOrEqual(target)
      }),
    )
  })
})

describe('requests at once', () => {
  test('a place is free again when a request ends, or when it has not been heard of for long', () => {
    const load = newLoad()
    const limits = { concurrentRequests: 2 }
    ask(load, limits, NOON, 'a')
    ask(load, limits, NOON, 'b')
    expect(ask(load, limits, NOON)).toMatchObject({ admitted: false, code: 'rate_limited', retryAfterSeconds: 1 })
    settle(load, 'a', 5, NOON)
    expect(ask(load, limits, NOON, 'c').admitted).toBe(true)
    renewLease(load, 'b', { minuteTokens: 0, monthTokens: 0 }, NOON + LEASE_LIFE_MS - 1)
    expect(ask(load, limits, NOON + LEASE_LIFE_MS, 'd').admitted).toBe(true)
    expect(ask(load, limits, NOON + LEASE_LIFE_MS, 'e').admitted).toBe(false)
  })
})

test('asked again because the answer was lost, a request has its one place and counts once', () => {
  const load = newLoad()
  const limits = { concurrentRequests: 1, requestsPerMinute: 1, tokensPerMinute: 20, tokensPerMonth: 100 }
  const first = ask(load, limits, NOON, 'a')
  expect(first.admitted).toBe(true)
  expect(ask(load, limits, NOON + 500, 'a')).toEqual(first)
  expect([load.leases.size, minuteTotal(load.requests, NOON + 500)]).toEqual([1, 1])
  settle(load, 'a', 5, NOON + 600)
  expect(ask(load, { concurrentRequests: 1 }, NOON + 700, 'b').admitted).toBe(true)
})

describe('tokens per minute', () => {
  test('counts what running requests may need, then what they took', () => {
    const load = newLoad()
    const limits = { tokensPerMinute: 50 }
    expect(ask(load, limits, NOON, 'a').admitted).toBe(true)
    expect(ask(load, limits, NOON, 'b').admitted).toBe(true)
    expect(ask(load, limits, NOON, 'c')).toMatchObject({ admitted: false, code: 'rate_limited' })
    settle(load, 'a', 2, NOON)
    expect(ask(load, limits, NOON, 'c').admitted).toBe(true)
  })

  test('a request larger than the limit runs when the minute is unused', () => {
    const load = newLoad()
    const large = { promptTokens: 100, mostPromptTokens: 100, likelyNewTokens: 100, mostNewTokens: 100, sequences: 1 }
    expect(ask(load, { tokensPerMinute: 50 }, NOON, 'a', large).admitted).toBe(true)
    settle(load, 'a', 200, NOON)
    expect(ask(load, { tokensPerMinute: 50 }, NOON + 59_000, 'b', large).admitted).toBe(false)
    expect(ask(load, { tokensPerMinute: 50 }, NOON + 62_000, 'b', large).admitted).toBe(true)
  })
})

describe('the month’s budget', () => {
  test('cuts the answer to what is left, then refuses until the next month', () => {
    const load = newLoad()
    const limits = { tokensPerMonth: 100 }
    const open = { promptTokens: 10, mostPromptTokens: 10, likelyNewTokens: 50, mostNewTokens: 1000, sequences: 1 }
    expect(ask(load, limits, NOON, 'a', open)).toMatchObject({ admitted: true, maxNewTokens: 90 })
    expect(ask(load, limits, NOON, 'b', open)).toMatchObject({ admitted: false, code: 'budget_exhausted' })
    settle(load, 'a', 60, NOON)
    expect(ask(load, limits, NOON, 'b', open)).toMatchObject({ admitted: true, maxNewTokens: 30 })
    settle(load, 'b', 40, NOON)
    const refused = ask(load, limits, NOON, 'c', open)
    expect(refused).toMatchObject({ admitted: false, code: 'budget_exhausted' })
    const nextMonth = Date.UTC(2026, 11, 1)
    expect(!refused.admitted && refused.retryAfterSeconds).toBe((nextMonth - NOON) / 1000)
    expect(ask(load, limits, nextMonth, 'c', open)).toMatchObject({ admitted: true, maxNewTokens: 90 })
  })

  test('refuses more sequences than tokens are left', () => {
    const load = newLoad()
    const many = { promptTokens: 10, mostPromptTokens: 10, likelyNewTokens: 64, mostNewTokens: 640, sequences: 64 }
    expect(ask(load, { tokensPerMonth: 73 }, NOON, 'a', many)).toMatchObject({ code: 'budget_exhausted' })
    expect(ask(load, { tokensPerMonth: 74 }, NOON, 'a', many)).toMatchObject({ admitted: true, maxNewTokens: 64 })
  })

  test('counts a prompt by its bytes until a node has counted: Chinese and emoji take a token or more a character', () => {
    for (const [text, tokens] of [
      ['漢字'.repeat(30), 180],
      ['🦊'.repeat(10), 40],
      ['12345', 5],
    ] as const) {
      const { mostPromptTokens } = promptSize(text, 1000)
      expect(mostPromptTokens).toBeGreaterThanOrEqual(tokens)
    }
    expect(promptSize('漢'.repeat(5000), 1024).mostPromptTokens).toBe(1024)
  })

  test('is never exceeded, whatever runs at once, when no answer is longer than its limit', () => {
    const events = fc.array(
      fc.record({
        promptTokens: fc.integer({ min: 1, max: 30 }),
        wanted: fc.integer({ min: 1, max: 60 }),
        settleFirst: fc.boolean(),
        sequences: fc.integer({ min: 1, max: 8 }),
      }),
      { maxLength: 40 },
    )
    fc.assert(
      fc.property(
        events,
        fc.integer({ min: 1, max: 300 }),
        fc.option(fc.integer({ min: 1, max: 80 }), { nil: undefined }),
        (asks, tokensPerMonth, cap) => {
          const load = newLoad()
          const running: { id: string; tokens: number }[] = []
          asks.forEach(({ promptTokens, wanted, settleFirst, sequences }, i) => {
            const oldest = settleFirst ? running.shift() : undefined
            if (oldest !== undefined) {
              settle(load, oldest.id, oldest.tokens, NOON)
            }
            const most = sequences * wanted
            const size = {
              promptTokens,
              mostPromptTokens: promptTokens,
              likelyNewTokens: most,
              mostNewTokens: most,
              sequences,
            }
            const limits = cap === undefined ? { tokensPerMonth } : { tokensPerMonth, maxNewTokens: cap }
            const verdict = ask(load, limits, NOON, String(i), size)
            if (verdict.admitted) {
              const each = Math.min(wanted, Math.max(1, Math.floor((verdict.maxNewTokens ?? most) / sequences)))
              running.push({ id: String(i), tokens: promptTokens + sequences * each })
            }
          })
          for (const { id, tokens } of running) {
            settle(load, id, tokens, NOON)
          }
          expect(load.monthTokens).toBeLessThanOrEqual(tokensPerMonth)
        },
      ),
    )
  })
})
