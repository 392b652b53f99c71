/**
 * A tenant's limits: what is used, whether one more request may start, and what it may generate. Pure: one owner (the
 * tenant's Durable Object) holds the state and calls this in order.
 */

import type { Limits } from '../../shared/edge-api.ts'
import {
  addToMinute,
  createSlidingMinute,
  minuteTotal,
  type SlidingMinute,
  secondsUntilTotal,
} from './sliding-minute.ts'

/** What an admitted request may come to; counted until the true numbers are known. Prompt and generated tokens. */
export interface Reservation {
  /** Counts towards the minute: a likely number, or a burst of requests without `max_tokens` would lock the minute. */
  minuteTokens: number
  /** Counts towards the month: the most it can be, so that requests in flight together stay within the budget. */
  monthTokens: number
}

/** One request between its admission and its end. */
export interface Lease extends Reservation {
  /** Unix milliseconds; not renewed until then, its request is taken to have died with its isolate. */
  expiresAt: number
  /** As it was admitted; forgotten with the first renewal, when its owner has it. */
  maxNewTokens?: number | undefined
}

export interface TenantLoad {
  requests: SlidingMinute
  tokens: SlidingMinute
  leases: Map<string, Lease>
  /** Used in the current month. */
  monthTokens: number
  /** `2026-11`. */
  month: string
}

export interface Admitted {
  admitted: true
  reservation: Reservation
  maxNewTokens: number | undefined
}

export type LimitVerdict =
  | Admitted
  | { admitted: false; code: 'rate_limited' | 'budget_exhausted'; message: string; retryAfterSeconds: number }

/** A request that is streaming renews its lease more often than that. */
export const LEASE_LIFE_MS = 60_000

export interface AdmissionAsk {
  /** A likely number; the true one comes with the answer. */
  promptTokens: number
  /** What the prompt can be at most. */
  mostPromptTokens: number
  /** What it will likely generate: what it asks for, or a guess. */
  likelyNewTokens: number
  /** What it can generate at most. */
  mostNewTokens: number
  /** Sequences that run; a limit on new tokens is shared among them, and each generates one at least. */
  sequences: number
}

export function createTenantLoad(month: string, monthTokens: number): TenantLoad {
  return { requests: createSlidingMinute(), tokens: createSlidingMinute(), leases: new Map(), monthTokens, month }
}

export function decideAdmission(load: TenantLoad, limits: Limits, ask: AdmissionAsk, now: number): LimitVerdict {
  expireLeases(load, now)
  rollMonth(load, now)
  const cap = limits.maxNewTokens ?? Number.POSITIVE_INFINITY
  const minuteTokens = ask.promptTokens + Math.min(ask.likelyNewTokens, cap)
  const refused =
    checkConcurrency(load, limits) ?? checkRequests(load, limits, now) ?? checkMinute(load, limits, minuteTokens, now)
  if (refused !== undefined) {
    return refused
  }
  const left = monthLeft(load, limits, ask, now)
  if (typeof left !== 'number') {
    return left
  }
  const newTokens = Math.min(ask.mostNewTokens, Math.max(leastNewTokens(ask), Math.min(cap, left)))
  const maxNewTokens = Math.min(cap, left)
  return {
    admitted: true,
    reservation: { minuteTokens, monthTokens: ask.mostPromptTokens + newTokens },
    maxNewTokens: maxNewTokens === Number.POSITIVE_INFINITY ? undefined : maxNewTokens,
  }
}

/** Decides and carries out. Asked again under the same lease, because the first answer was lost, it says the same. */
export function admitOnce(
  load: TenantLoad,
  leaseId: string,
  limits: Limits,
  ask: AdmissionAsk,
  now: number,
): LimitVerdict {
  const held = load.leases.get(leaseId)
  if (held !== undefined) {
    const { minuteTokens, monthTokens, maxNewTokens } = held
    return { admitted: true, reservation: { minuteTokens, monthTokens }, maxNewTokens }
  }
  const verdict = decideAdmission(load, limits, ask, now)
  if (verdict.admitted) {
    admit(load, leaseId, verdict, now)
  }
  return verdict
}

/** Carries out an admission. */
export function admit(load: TenantLoad, leaseId: string, { reservation, maxNewTokens }: Admitted, now: number): void {
  addToMinute(load.requests, now, 1)
  load.leases.set(leaseId, { ...reservation, maxNewTokens, expiresAt: now + LEASE_LIFE_MS })
}

/** Also brings back a lease that was forgotten, when its owner restarted. */
export function renewLease(load: TenantLoad, leaseId: string, reservation: Reservation, now: number): void {
  load.leases.set(leaseId, { ...reservation, expiresAt: now + LEASE_LIFE_MS })
}

/** The request has ended: its reservation becomes what it used. */
export function settle(load: TenantLoad, leaseId: string, usedTokens: number, now: number): void {
  load.leases.delete(leaseId)
  addTokens(load, usedTokens, now)
}

export function addTokens(load: TenantLoad, tokens: number, now: number): void {
  rollMonth(load, now)
  addToMinute(load.tokens, now, tokens)
  load.monthTokens += tokens
}

/** `2026-11` in UTC. */
export function monthOf(now: number): string {
  return new Date(now).toISOString().slice(0, 7)
}

function checkConcurrency(load: TenantLoad, limits: Limits): LimitVerdict | undefined {
  const most = limits.concurrentRequests
  return most !== undefined && load.leases.size >= most
    ? refuse('rate_limited', `the limit is ${most} requests at once`, 1)
    : undefined
}

function checkRequests(load: TenantLoad, limits: Limits, now: number): LimitVerdict | undefined {
  const most = limits.requestsPerMinute
  if (most === undefined || minuteTotal(load.requests, now) < most) {
    return undefined
  }
  const wait = secondsUntilTotal(load.requests, now, most - 1)
  return refuse('rate_limited', `the limit is ${most} requests per minute`, wait)
}

/** A request that is larger than a whole minute's limit still runs when the minute is unused, or it never could. */
function checkMinute(load: TenantLoad, limits: Limits, wanted: number, now: number): LimitVerdict | undefined {
  const most = limits.tokensPerMinute
  if (most === undefined) {
    return undefined
  }
  const room = most - Math.min(wanted, most) - reserved(load, 'minuteTokens')
  return minuteTotal(load.tokens, now) <= room
    ? undefined
    : refuse('rate_limited', `the limit is ${most} tokens per minute`, secondsUntilTotal(load.tokens, now, room))
}

/** How many tokens this request may generate within the month's budget. */
function monthLeft(load: TenantLoad, limits: Limits, ask: AdmissionAsk, now: number): number | LimitVerdict {
  const budget = limits.tokensPerMonth
  if (budget === undefined) {
    return Number.POSITIVE_INFINITY
  }
  const unused = budget - load.monthTokens - ask.mostPromptTokens
  const least = Math.max(1, leastNewTokens(ask))
  if (unused < least) {
    const rest = Math.max(0, budget - load.monthTokens)
    const asked = `${rest} are left, and this request may take ${ask.mostPromptTokens + least} or more`
    const message = `the budget of ${budget} tokens for ${load.month} is used: ${asked}`
    return refuse('budget_exhausted', message, secondsUntilNextMonth(now))
  }
  const left = unused - reserved(load, 'monthTokens')
  return left < least
    ? refuse('budget_exhausted', `requests in flight may use the rest of the budget for ${load.month}`, 1)
    : left
}

function leastNewTokens({ sequences, mostNewTokens }: AdmissionAsk): number {
  return Math.min(sequences, mostNewTokens)
}

function reserved(load: TenantLoad, of: keyof Reservation): number {
  let sum = 0
  for (const lease of load.leases.values()) {
    sum += lease[of]
  }
  return sum
}

function refuse(code: 'rate_limited' | 'budget_exhausted', message: string, retryAfterSeconds: number): LimitVerdict {
  return { admitted: false, code, message, retryAfterSeconds }
}

function expireLeases(load: TenantLoad, now: number): void {
  for (const [id, lease] of load.leases) {
    if (lease.expiresAt <= now) {
      load.leases.delete(id)
    }
  }
}

function rollMonth(load: TenantLoad, now: number): void {
  const month = monthOf(now)
  if (month > load.month) {
    load.month = month
    load.monthTokens = 0
  }
}

function secondsUntilNextMonth(now: number): number {
  const date = new Date(now)
  return Math.ceil((Date.UTC(date.getUTCFullYear(), date.getUTCMonth() + 1, 1) - now) / 1000)
}
