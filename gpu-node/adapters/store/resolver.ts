/**
 * Refs → where their content lies now. Looks at an adapter's home with the caller's own token, at most once every few
 * seconds for one ref and token; a refusal is remembered as shortly, for this ref and token alone.
 */

import { createHash, randomBytes } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import { type AdapterRef, type AdapterSource, formatAdapterRef } from '../../../shared/adapter-ref.ts'
import { RingletError } from '../../../shared/errors.ts'
import type { AcquireOptions } from '../adapter-store.ts'
import type { AdapterSourceReader, ResolvedAdapter } from '../sources/adapter-source.ts'
import type { ContentIndex } from './content-index.ts'
import { FairPool } from './fair-pool.ts'
import { type Run, SharedLoads } from './shared-loads.ts'

export interface ResolverOptions {
  sources: Record<AdapterSource, AdapterSourceReader>
  /** How long an answer of a home counts; for local directories at most a second. */
  resolveTtlMs: number
  refusalTtlMs: number
  hubOffline: boolean
  now: () => number
}

export interface Located {
  contentKey: string
  /** With the exact revision, where the home has revisions. */
  exact: AdapterRef
  /** Absent where the content is known without a look at its home. */
  resolved: ResolvedAdapter | undefined
}

/** A directory is looked at once a second at most: a look is eight system calls. */
const LOCAL_TTL_MS = 1_000
/** Refusals that asking again at once would only repeat. */
const REMEMBERED = new Set(['adapter_not_found', 'adapter_refused', 'adapter_too_large', 'adapter_not_ready'])
/** By size: `max` would take room for all at once. */
const REMEMBERED_BOUND = { maxSize: 20_000, sizeCalculation: () => 1 }
/** Looks at homes at once; they are small, and a home that hangs must not stop looks at others. */
const LOOKS = { jobs: 256, jobsPerTenant: 64 }

export class Resolver {
  readonly #options: ResolverOptions
  readonly #index: ContentIndex
  readonly #looks: SharedLoads<ResolvedAdapter>
  readonly #answers: LRUCache<string, ResolvedAdapter>
  readonly #refusals: LRUCache<string, RingletError>
  /** The last answer for a ref and token, for when the home can't be reached. */
  readonly #last = new LRUCache<string, Located>(REMEMBERED_BOUND)
  /** In keys a token stands as a salted hash. */
  readonly #salt = randomBytes(16)

  constructor(options: ResolverOptions, index: ContentIndex) {
    this.#options = options
    this.#index = index
    this.#looks = new SharedLoads(new FairPool(LOOKS))
    const timed = (ttl: number) => ({
      ...REMEMBERED_BOUND,
      ttl: Math.max(1, ttl),
      ttlResolution: 0,
      perf: { now: options.now },
    })
    this.#answers = new LRUCache(timed(options.resolveTtlMs))
    this.#refusals = new LRUCache(timed(options.refusalTtlMs))
  }

  /** `held`: is this content here? Then an exact ref needs no look. */
  async locate(ref: AdapterRef, options: AcquireOptions, held: (contentKey: string) => boolean): Promise<Located> {
    const source = this.#options.sources[ref.source]
    const name = formatAdapterRef(ref)
    if (source.isExact(ref)) {
      const contentKey = this.#index.keyOf(name)
      if (contentKey !== undefined && held(contentKey)) {
        return { contentKey, exact: ref, resolved: undefined }
      }
    }
    const scope = this.scope(ref, options)
    const refusal = this.#refusals.get(scope)
    if (refusal !== undefined) {
      throw refusal
    }
    try {
      const resolved = this.#answers.get(scope) ?? (await this.#look(scope, ref, source, options))
      const located: Located = { contentKey: resolved.contentKey, exact: resolved.ref, resolved }
      this.#index.setKey(formatAdapterRef(resolved.ref), resolved.contentKey)
      this.#last.set(scope, located)
      return located
    } catch (error) {
      this.rememberRefusal(ref, options, error)
      const earlier = this.#withoutHome(ref, scope, error)
      if (earlier !== undefined && held(earlier.contentKey)) {
        if (earlier.resolved !== undefined) {
          // Or each request would wait for the home's silence.
          this.#answers.set(scope, earlier.resolved)
        }
        return earlier
      }
      throw error
    }
  }

  /** A refusal found later, in the files themselves, counts for the same ref and token. */
  rememberRefusal(ref: AdapterRef, options: AcquireOptions, error: unknown): void {
    if (error instanceof RingletError && REMEMBERED.has(error.code)) {
      this.#refusals.set(this.scope(ref, options), error)
    }
  }

  /** The home said it moments ago, but it proved wrong: ask again. */
  forget(ref: AdapterRef, options: AcquireOptions): void {
    this.#answers.delete(this.scope(ref, options))
  }

  forgetRefusals(): void {
    this.#refusals.clear()
    this.#answers.clear()
  }

  /** One ref with one token. */
  scope(ref: AdapterRef, options: AcquireOptions): string {
    const token = tokenFor(ref, options)
    const hash = token === undefined ? '' : createHash('sha256').update(this.#salt).update(token).digest('base64')
    return `${formatAdapterRef(ref)}\0${hash}`
  }

  abort(reason: unknown): void {
    this.#looks.abortAll(reason)
  }

  async #look(
    scope: string,
    ref: AdapterRef,
    source: AdapterSourceReader,
    options: AcquireOptions,
  ): Promise<ResolvedAdapter> {
    const token = tokenFor(ref, options)
    const start = async ({ signal }: Run<never>) => {
      const resolved = await source.resolve(ref, { token, signal })
      const ttl = ref.source === 'local' ? { ttl: Math.max(1, Math.min(LOCAL_TTL_MS, this.#options.resolveTtlMs)) } : {}
      this.#answers.set(scope, resolved, ttl)
      return resolved
    }
    const waiting = { tenantId: options.tenantId, signal: options.signal, onProgress: undefined }
    return this.#looks.join(scope, waiting, start, (resolved) => resolved).taken
  }

  /** What this caller was told before; offline, what anybody was: the operator chose to serve without asking. */
  #withoutHome(ref: AdapterRef, scope: string, error: unknown): Located | undefined {
    if (!(error instanceof RingletError) || error.code !== 'adapter_home_unreachable') {
      return undefined
    }
    const last = this.#last.get(scope)
    if (last !== undefined || ref.source !== 'hub' || !this.#options.hubOffline) {
      return last
    }
    const contentKey = this.#index.keyOf(formatAdapterRef(ref))
    return contentKey === undefined ? undefined : { contentKey, exact: ref, resolved: undefined }
  }
}

/** By the ref as the ticket spells it, then without its revision, then the caller's token for all. */
export function tokenFor(ref: AdapterRef, { tokens }: AcquireOptions): string | undefined {
  const { revision: _, ...latest } = ref
  const own = (name: string) => (Object.hasOwn(tokens, name) ? tokens[name] : undefined)
  return own(formatAdapterRef(ref)) ?? own(formatAdapterRef(latest)) ?? own('*')
}
