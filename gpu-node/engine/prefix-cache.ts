/**
 * KV of prompts and answers that were run before, for sequences that begin the same way. A tree of token blocks a scope
 * (adapter digest and tenant salt): a block is found only by its exact tokens after exactly the blocks before it.
 * The KV of several new blocks is saved as one segment; segments leave by least recent use, from the leaves of the tree.
 */

import type { KvSnapshot } from './engine-types.ts'
import type { Sequence } from './sequence.ts'

interface Block {
  children: Map<string, Block>
  segment: Segment
}

interface Segment {
  scope: string
  snapshot: KvSnapshot
  /** Where its first block hangs. */
  parent: Map<string, Block>
  firstKey: string
  parentSegment: Segment | undefined
  /** Segments that hang on one of its blocks. */
  dependants: number
  used: number
}

/** A prefix found: restore the snapshots in order, each up to `end`. */
export interface PrefixHit {
  tokens: number
  pieces: { snapshot: KvSnapshot; end: number }[]
}

export interface PrefixLimits {
  maxBytes: number
  blockTokens: number
}

export class PrefixCache {
  readonly #limits: PrefixLimits
  readonly #roots = new Map<string, Map<string, Block>>()
  readonly #segments = new Set<Segment>()
  #bytes = 0
  #uses = 0
  /** Known from the first snapshot on; spares copying what would not fit. */
  #bytesPerToken = 0

  constructor(limits: PrefixLimits) {
    this.#limits = limits
  }

  get bytes(): number {
    return this.#bytes
  }

  get segmentCount(): number {
    return this.#segments.size
  }

  /** The longest known prefix of at most `maxTokens` tokens, and marks it as used. */
  find(sequence: Sequence, maxTokens: number): PrefixHit {
    const size = this.#limits.blockTokens
    const pieces: PrefixHit['pieces'] = []
    let tokens = 0
    for (const block of this.#walk(sequence, maxTokens)) {
      tokens += size
      const last = pieces.at(-1)
      if (last?.snapshot === block.segment.snapshot) {
        last.end = tokens
      } else {
        block.segment.used = ++this.#uses
        pieces.push({ snapshot: block.segment.snapshot, end: tokens })
      }
    }
    return { tokens, pieces }
  }

  /** How many tokens `find` would find. */
  measure(sequence: Sequence, maxTokens: number): number {
    return [...this.#walk(sequence, maxTokens)].length * this.#limits.blockTokens
  }

  /** Saves what is not known yet of the first `filled` tokens; `save` copies positions [start, end) out of the sequence's row. */
  add(sequence: Sequence, filled: number, save: (start: number, end: number) => KvSnapshot): void {
    const size = this.#limits.blockTokens
    const path = [...this.#walk(sequence, filled)]
    const start = path.length * size
    const end = Math.floor(filled / size) * size
    if (end <= start || (end - start) * this.#bytesPerToken >= this.#limits.maxBytes) {
      return
    }
    for (const { segment } of path) {
      segment.used = ++this.#uses
    }
    const snapshot = save(start, end)
    this.#bytesPerToken = snapshot.bytes / (end - start)
    if (!this.#makeRoom(snapshot.bytes, new Set(path.map((block) => block.segment)))) {
      return
    }
    const tail = path.at(-1)
    const parent = tail?.children ?? this.#root(sequence.prefixScope)
    const segment: Segment = {
      scope: sequence.prefixScope,
      snapshot,
      parent,
      firstKey: blockKey(sequence.tokens, start, size),
      parentSegment: tail?.segment,
      dependants: 0,
      used: ++this.#uses,
    }
    let children = parent
    for (let at = start; at < end; at += size) {
      const block: Block = { children: new Map(), segment }
      children.set(blockKey(sequence.tokens, at, size), block)
      children = block.children
    }
    if (tail !== undefined) {
      tail.segment.dependants++
    }
    this.#segments.add(segment)
    this.#bytes += snapshot.bytes
  }

  /** Forgets all prefixes of one adapter. */
  dropAdapter(digest: string): void {
    for (const segment of this.#segments) {
      if (segment.scope.startsWith(`${digest}\0`)) {
        this.#segments.delete(segment)
        this.#bytes -= segment.snapshot.bytes
        this.#roots.delete(segment.scope)
      }
    }
  }

  /** What is wrong with the bookkeeping; nothing, when all is well. */
  violations(): string[] {
    const bytes = [...this.#segments].reduce((sum, segment) => sum + segment.snapshot.bytes, 0)
    const found: string[] = []
    if (bytes !== this.#bytes) {
      found.push(`prefix cache counts ${this.#bytes} bytes and holds ${bytes}`)
    }
    if (this.#bytes > this.#limits.maxBytes) {
      found.push(`prefix cache holds ${this.#bytes} bytes of at most ${this.#limits.maxBytes}`)
    }
    for (const segment of this.#segments) {
      if (segment.parentSegment !== undefined && !this.#segments.has(segment.parentSegment)) {
        found.push('prefix cache holds a segment whose beginning is gone')
      }
    }
    return found
  }

  *#walk(sequence: Sequence, maxTokens: number): Generator<Block> {
    const size = this.#limits.blockTokens
    let children = this.#roots.get(sequence.prefixScope)
    for (let at = 0; children !== undefined && at + size <= maxTokens; at += size) {
      const block: Block | undefined = children.get(blockKey(sequence.tokens, at, size))
      if (block === undefined) {
        return
      }
      yield block
      children = block.children
    }
  }

  #root(scope: string): Map<string, Block> {
    const known = this.#roots.get(scope)
    if (known !== undefined) {
      return known
    }
    const root = new Map<string, Block>()
    this.#roots.set(scope, root)
    return root
  }

  #makeRoom(bytes: number, keep: ReadonlySet<Segment>): boolean {
    if (bytes > this.#limits.maxBytes) {
      return false
    }
    while (this.#bytes + bytes > this.#limits.maxBytes) {
      let oldest: Segment | undefined
      for (const segment of this.#segments) {
        const removable = segment.dependants === 0 && !keep.has(segment)
        if (removable && (oldest === undefined || segment.used < oldest.used)) {
          oldest = segment
        }
      }
      if (oldest === undefined) {
        return false
      }
      this.#remove(oldest)
    }
    return true
  }

  #remove(segment: Segment): void {
    segment.parent.delete(segment.firstKey)
    if (segment.parentSegment !== undefined) {
      segment.parentSegment.dependants--
    }
    if (this.#roots.get(segment.scope)?.size === 0) {
      this.#roots.delete(segment.scope)
    }
    this.#segments.delete(segment)
    this.#bytes -= segment.snapshot.bytes
  }
}

/** Two UTF-16 units a token, so that equal keys are equal tokens. */
function blockKey(tokens: Int32Array, start: number, size: number): string {
  const block = tokens.subarray(start, start + size)
  return String.fromCharCode(...new Uint16Array(block.slice().buffer))
}

/** Tokens that two sequences have in common from the start, among the first `maxTokens`. */
export function commonPrefix(a: Int32Array, b: Int32Array, maxTokens: number): number {
  let at = 0
  while (at < maxTokens && a[at] === b[at]) {
    at++
  }
  return at
}
