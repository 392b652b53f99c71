/**
 * Structured output as the node's main thread sees it: `acquire` turns a spec into a grammar id for the engine, and keeps the
 * grammar compiled until it is released. xgrammar runs in threads of its own (docs/structured-output.md says why in which).
 */

import { createHash } from 'node:crypto'
import { MessageChannel, type MessagePort } from 'node:worker_threads'
import { LRUCache } from 'lru-cache'
import { RingletError } from '../../shared/errors.ts'
import type { ThreadPart } from '../engine/engine-client.ts'
import { WaitingPlaces } from '../waiting-places.ts'
import { threadModule } from '../worker-thread.ts'
import { grammarInvalid } from './grammar-error.ts'
import type { MaskSourceOptions } from './grammar-mask-source.ts'
import type { MatcherNews } from './grammar-messages.ts'
import { GrammarReader } from './grammar-reader.ts'
import { type GrammarSpec, MAX_SPEC_CHARS, type ReadGrammar } from './grammar-spec.ts'
import type { GrammarVocabulary } from './grammar-vocabulary.ts'
import { Matcher } from './matcher.ts'
import { chooseMatcher } from './matcher-choice.ts'

export interface GrammarLimits {
  /** Time to read a spec, and to compile it; a thread that takes longer is ended. */
  readMs: number
  compileMs: number
  /** Requests that may wait for a compile at once, tenants sharing, and for how long; one more, or longer, is `queue_full`. */
  maxWaiting: number
  maxWaitMs: number
  maxMatchers: number
  grammarsPerMatcher: number
  /** WASM memory of a thread. */
  maxHeapBytes: number
}

export const DEFAULT_GRAMMAR_LIMITS: GrammarLimits = {
  readMs: 2_000,
  compileMs: 10_000,
  maxWaiting: 64,
  maxWaitMs: 30_000,
  maxMatchers: 6,
  grammarsPerMatcher: 64,
  maxHeapBytes: 512 * 1024 * 1024,
}

/** Whose grammar it is: tenants take turns at having theirs read, and share the places to wait on. */
export interface GrammarCaller {
  tenantId?: string
  signal?: AbortSignal
}

export interface GrammarLease {
  grammarId: string
  /** Keywords of the schema, by path, that are left to the model. */
  notEnforced: readonly string[]
  /** Time the compile took; 0: it was compiled already. */
  compileMs: number
  /** Once, when the sequence has ended. */
  release(): void
}

export interface GrammarStats {
  matchers: number
  grammars: number
  leases: number
  compiles: number
  refused: number
  waiting: number
}

interface KeyedGrammar {
  /** Equal grammars have equal keys. */
  key: string
  grammar: ReadGrammar
}

const READ_CACHE_ENTRIES = 256
/** A compile that took too long may be tried again when the machine is less busy. */
const BROKEN_MS = 60_000

export class GrammarService {
  readonly #vocabulary: GrammarVocabulary
  readonly #limits: GrammarLimits
  readonly #reader: GrammarReader
  /** Specs read, or refused, by their hash: the same wrong schema costs one thread, not one a request. */
  readonly #read = new LRUCache<string, Promise<KeyedGrammar>>({ max: READ_CACHE_ENTRIES })
  /** Grammars that could not be compiled, by key: each try costs a thread. */
  readonly #broken = new LRUCache<string, RingletError>({ max: READ_CACHE_ENTRIES, ttl: BROKEN_MS })
  readonly #matchers = new Map<number, Matcher>()
  readonly #engines: MessagePort[] = []
  readonly #places: WaitingPlaces
  #changed = deferred()
  #serial = 0
  #uses = 0
  #compiles = 0
  #refused = 0
  #closed = false

  constructor(vocabulary: GrammarVocabulary, limits: Partial<GrammarLimits> = {}) {
    this.#vocabulary = vocabulary
    this.#limits = { ...DEFAULT_GRAMMAR_LIMITS, ...limits }
    this.#reader = new GrammarReader(this.#limits)
    this.#places = new WaitingPlaces(this.#limits.maxWaiting)
  }

  /** What `EngineInit.masks` takes. */
  maskSource(): ThreadPart {
    const { port1, port2 } = new MessageChannel()
    port1.unref()
    this.#engines.push(port1)
    for (const matcher of this.#matchers.values()) {
      announce(matcher, port1)
    }
    const options: MaskSourceOptions = { port: port2, width: this.#vocabulary.width }
    return { module: threadModule(new URL('./grammar-mask-source.ts', import.meta.url)), options, transfer: [port2] }
  }

  /** Starts the threads ahead of the first request. */
  async start(): Promise<void> {
    await Promise.all([this.#readSpec({ kind: 'json_object' }, ''), this.#startMatcher().started])
  }

  /** Rejects with `grammar_invalid` (the spec is at fault) or `queue_full`. */
  async acquire(spec: GrammarSpec, { tenantId = '', signal }: GrammarCaller = {}): Promise<GrammarLease> {
    try {
      const { key, grammar } = await this.#readSpec(spec, tenantId)
      return await this.#leaseOf(key, grammar, tenantId, signal)
    } catch (error) {
      this.#refused += 1
      throw error
    }
  }

  stats(): GrammarStats {
    const matchers = [...this.#matchers.values()]
    return {
      matchers: matchers.length,
      grammars: matchers.reduce((sum, matcher) => sum + matcher.grammars.size, 0),
      leases: matchers.reduce((sum, matcher) => sum + matcher.leases, 0),
      compiles: this.#compiles,
      refused: this.#refused,
      waiting: this.#places.taken,
    }
  }

  async close(): Promise<void> {
    this.#closed = true
    this.#tellChange()
    await Promise.all([this.#reader.close(), ...[...this.#matchers.values()].map((matcher) => matcher.close())])
    for (const port of this.#engines) {
      port.close()
    }
  }

  #readSpec(spec: GrammarSpec, tenantId: string): Promise<KeyedGrammar> {
    const asText = JSON.stringify(spec)
    if (asText.length > MAX_SPEC_CHARS) {
      throw grammarInvalid(`the grammar has ${asText.length} characters as JSON; at most ${MAX_SPEC_CHARS} are allowed`)
    }
    const key = sha256(asText)
    const known = this.#read.get(key)
    if (known !== undefined) {
      return known
    }
    const reading = this.#reader
      .read(spec, tenantId)
      // Grammars that differ in lengths alone have the same EBNF.
      .then((grammar) => ({ grammar, key: grammar.lengths === undefined ? sha256(grammar.ebnf) : key }))
    this.#read.set(key, reading)
    // Only what is wrong with the spec itself is worth remembering.
    reading.catch((error) => {
      if (!(error instanceof RingletError && error.code === 'grammar_invalid')) {
        this.#read.delete(key)
      }
    })
    return reading
  }

  async #leaseOf(
    key: string,
    grammar: ReadGrammar,
    tenantId: string,
    signal: AbortSignal | undefined,
  ): Promise<GrammarLease> {
    const waitUntil = performance.now() + this.#limits.maxWaitMs
    let compileMs = 0
    let waits = false
    const leave = () => {
      if (waits) {
        waits = false
        this.#places.giveBack(tenantId)
      }
    }
    try {
      for (;;) {
        signal?.throwIfAborted()
        if (this.#closed) {
          throw new RingletError('node_draining', 'the node is shutting down')
        }
        const broken = this.#broken.get(key)
        if (broken !== undefined) {
          throw broken
        }
        const choice = chooseMatcher([...this.#matchers.values()], key, this.#limits.maxMatchers)
        switch (choice.kind) {
          case 'use':
            return this.#lease(this.#matcher(choice.id), key, grammar.notEnforced, compileMs)
          case 'compile':
            leave()
            compileMs = await this.#compile(this.#matcher(choice.id), key, grammar)
            break
          case 'start':
            leave()
            compileMs = await this.#compile(this.#startMatcher(), key, grammar)
            break
          case 'wait': {
            // A place once taken is kept, however often there is nothing yet.
            waits ||= this.#places.take(tenantId)
            const left = waitUntil - performance.now()
            if (!waits || left <= 0) {
              throw new RingletError('queue_full', 'too many grammars are being compiled', { retryAfterSeconds: 1 })
            }
            await this.#wait(left, signal)
          }
        }
      }
    } finally {
      leave()
    }
  }

  #lease(matcher: Matcher, key: string, notEnforced: readonly string[], compileMs: number): GrammarLease {
    this.#uses += 1
    const entry = matcher.lease(key, this.#uses)
    let released = false
    return {
      grammarId: entry.grammarId,
      notEnforced,
      compileMs,
      release: () => {
        if (!released) {
          released = true
          matcher.release(entry)
          this.#tellChange()
        }
      },
    }
  }

  async #compile(matcher: Matcher, key: string, grammar: ReadGrammar): Promise<number> {
    matcher.forgetDownTo(this.#limits.grammarsPerMatcher - 1)
    this.#compiles += 1
    try {
      return (await matcher.compile(key, grammar, this.#limits.compileMs)).compileMs
    } catch (error) {
      if (error instanceof RingletError && error.code === 'grammar_invalid' && !this.#closed) {
        this.#broken.set(key, error)
      }
      throw error
    } finally {
      this.#tellChange()
    }
  }

  #startMatcher(): Matcher {
    this.#serial += 1
    const data = { vocabulary: this.#vocabulary, maxHeapBytes: this.#limits.maxHeapBytes }
    const matcher = new Matcher(this.#serial, data, (lost) => this.#onLost(lost))
    this.#matchers.set(matcher.id, matcher)
    for (const port of this.#engines) {
      announce(matcher, port)
    }
    return matcher
  }

  #onLost(matcher: Matcher): void {
    this.#matchers.delete(matcher.id)
    for (const port of this.#engines) {
      const news: MatcherNews = { kind: 'gone', matcherId: matcher.id }
      port.postMessage(news)
    }
    this.#tellChange()
  }

  #matcher(id: number): Matcher {
    const matcher = this.#matchers.get(id)
    if (matcher === undefined) {
      throw new RangeError(`there is no matcher ${id}`)
    }
    return matcher
  }

  #tellChange(): void {
    this.#changed.resolve()
    this.#changed = deferred()
  }

  async #wait(ms: number, signal: AbortSignal | undefined): Promise<void> {
    const late = deferred()
    const timer = setTimeout(late.resolve, ms)
    signal?.addEventListener('abort', late.resolve, { once: true })
    try {
      await Promise.race([this.#changed.promise, late.promise])
    } finally {
      clearTimeout(timer)
      signal?.removeEventListener('abort', late.resolve)
    }
  }
}

function announce(matcher: Matcher, engine: MessagePort): void {
  const port = matcher.connect()
  const news: MatcherNews = { kind: 'matcher', matcherId: matcher.id, port }
  engine.postMessage(news, [port])
}

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}

function deferred(): { promise: Promise<void>; resolve: () => void } {
  let resolve = (): void => undefined
  const promise = new Promise<void>((done) => {
    resolve = done
  })
  return { promise, resolve }
}
