/** Draws for the rows of one run, whose logits came whole or were kept on a device. */

import type { KeptLogits, ShortlistAsk } from '../engine-types.ts'
import { type Draw, type DrawContext, isGreedy, Sampler, temperatureOf } from './sampler.ts'
import { leavesScores } from './score-changes.ts'
import { canShortlist, ShortlistSampler, type SpanDraw } from './shortlist-sampler.ts'

/** `undefined`: the run kept them. */
export type RunLogits = Float32Array | undefined

export interface RowDraw {
  row: number
  context: DrawContext
}

/** More than any shortlist is long. */
const LONGEST_LIST = 256

export class RowSampler {
  /** Of whole rows. */
  readonly whole: Sampler
  /** Draws that needed a whole row of kept logits. */
  wholeRows = 0
  readonly #vocabSize: number
  readonly #kept: KeptLogits | undefined
  readonly #short: ShortlistSampler | undefined

  constructor(vocabSize: number, kept: KeptLogits | undefined) {
    this.#vocabSize = vocabSize
    this.#kept = kept
    this.whole = new Sampler(vocabSize)
    this.#short = kept === undefined ? undefined : new ShortlistSampler(vocabSize, kept.spanLength, LONGEST_LIST)
  }

  /** Whether a run of so many rows may keep its logits. */
  mayKeep(rows: number): boolean {
    return this.#kept !== undefined && rows <= this.#kept.maxRows
  }

  row(logits: RunLogits, row: number): Float32Array {
    return logits === undefined
      ? this.#kept!.row(row)
      : logits.subarray(row * this.#vocabSize, (row + 1) * this.#vocabSize)
  }

  draw(logits: RunLogits, rows: readonly RowDraw[]): Draw[] {
    const short = logits === undefined ? this.#drawShort(rows) : []
    return rows.map(({ row, context }, i) => short[i] ?? this.#drawWhole(logits, row, context))
  }

  #drawWhole(logits: RunLogits, row: number, context: DrawContext): Draw {
    this.wholeRows += logits === undefined ? 1 : 0
    return this.whole.sample(this.row(logits, row), context)
  }

  #drawShort(rows: readonly RowDraw[]): (Draw | undefined)[] {
    const able = rows.filter(({ context }) => canShortlist(context.params))
    if (able.length === 0) {
      return []
    }
    const lists = this.#kept!.shortlists(able.map(askOf))
    const drawn = new Map<RowDraw, Draw>()
    const spans: { of: RowDraw; draw: SpanDraw }[] = []
    for (const [i, of] of able.entries()) {
      const list = lists[i]
      const draw = list === undefined ? undefined : this.#short!.draw(list, of.context)
      if (draw?.kind === 'span') {
        spans.push({ of, draw })
      } else if (draw !== undefined) {
        drawn.set(of, draw)
      }
    }
    if (spans.length > 0) {
      const logits = this.#kept!.spans(spans.map(({ of, draw }) => ({ row: of.row, span: draw.span })))
      for (const [i, { of, draw }] of spans.entries()) {
        const finished = this.#short!.finish(draw, logits[i]!)
        if (finished !== undefined) {
          drawn.set(of, finished)
        }
      }
    }
    return rows.map((row) => drawn.get(row))
  }
}

function askOf({ row, context: { params, history, mask } }: RowDraw): ShortlistAsk {
  return {
    row,
    changes: leavesScores(params) ? undefined : history.changes,
    mask,
    temperature: isGreedy(params) ? 1 : temperatureOf(params),
  }
}
