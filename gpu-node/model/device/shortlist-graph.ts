/**
 * The sampler's heavy part as ONNX graphs: logits' rows with bias, penalties and grammar masks, their largest scores, and sums of
 * exponentials by span. Float32 throughout. Only operators with CUDA kernels that read memory once: the largest are found group
 * by group, as CUDA's TopK sorts up to 256 numbers in one block, and takes milliseconds for a vocabulary. Rows are filled up to
 * a width that groups divide at every round, so that nothing of two sizes is ever joined (`CapturableWriter`).
 */

import type { GraphWriter } from '../graph/graph-writer.ts'
import { CapturableWriter } from './capturable-writer.ts'
import { DEVICE_OPSET } from './device-form.ts'

export interface ShortlistForm {
  /** Some row has bias or penalties. */
  changed: boolean
  /** Some row has a mask. */
  masked: boolean
}

export interface ShortlistShape {
  vocabSize: number
  /** Tokens of a row's list. */
  length: number
  /** Tokens of a span. */
  spanLength: number
  /** Numbers of a row with what fills it up (`paddedWidth`). */
  width: number
}

/** `[rows, 1, vocab]`: all logits; `[n]`, int32: the rows asked for. */
export const ALL_LOGITS = 'logits'
export const ASKED_ROWS = 'rows'
/** `[n, 1]`: 1 / temperature. */
export const SCALES = 'scales'
/** `[width]`, int32: each column's token, or any where it fills up. `[1, width]`: 0, and -Infinity for what fills up. */
export const COLUMNS = 'pad.columns'
export const COLUMN_SCORES = 'pad.scores'
/** `[E]`: index among the asked rows' `width` numbers, int32, and `ScoreChanges`' numbers. */
export const PLACES = 'change.places'
export const BIAS = 'change.bias'
export const REPETITION = 'change.repetition'
export const PENALTY = 'change.penalty'
/** `[n]`, int32: each row's among the masks; `[masks, ⌈width / 8⌉]`, uint8: one bit a token, the lowest first. */
export const MASK_ROWS = 'mask.rows'
export const MASKS = 'masks'
/** `[256, 8]`: 0 where a bit is set, and else -Infinity. `[spanLength, 1]`: ones. */
export const BIT_SCORES = 'bit.scores'
export const ONES = 'ones'
/** `[n, length]`: tokens, as floats, and their logits; `[n, 1]`: the best score; `[n, width / spanLength]`: sums, and of the unchanged logits. */
export const LISTED = 'listed'
export const LISTED_LOGITS = 'listed.logits'
export const BEST = 'best'
export const SUMS = 'sums'
export const LOGIT_SUMS = 'logit.sums'

/** `[rows · vocab]`; `[m, 1]` and `[1, spanLength]`, int32: where spans start, and 0, 1, 2 …; `[m, spanLength]`. */
export const FLAT_LOGITS = 'logits'
export const STARTS = 'starts'
export const OFFSETS = 'offsets'
export const SPANS = 'spans'

/** Numbers that one block of CUDA's TopK sorts. */
const GROUP = 256
/** Where fewer are left, one more TopK over all of them is quick enough. */
const FEW = 2048
/** ONNX's TensorProto.DataType. */
const FLOAT = 1
const INT32 = 6

/** What a row of each output has. */
export function outputColumns({ length, spanLength, width }: ShortlistShape): Record<string, number> {
  const spans = width / spanLength
  return { [LISTED]: length, [LISTED_LOGITS]: length, [BEST]: 1, [SUMS]: spans, [LOGIT_SUMS]: spans }
}

/** The least that holds a vocabulary and that groups, of which `length` numbers stay, divide until few are left. */
export function paddedWidth(vocabSize: number, length: number): number {
  if (vocabSize <= GROUP) {
    return vocabSize
  }
  const shrink = GROUP / length
  const divides = (width: number): boolean => width <= FEW || (width % GROUP === 0 && divides(width / shrink))
  let unit = GROUP
  let width = Math.ceil(vocabSize / unit) * unit
  while (!divides(width)) {
    unit *= shrink
    width = Math.ceil(vocabSize / unit) * unit
  }
  return width
}

export function buildShortlistGraph(shape: ShortlistShape, form: ShortlistForm): Uint8Array {
  const { vocabSize } = shape
  const graph = new CapturableWriter('float32', DEVICE_OPSET)
  const all = graph.node('Reshape', [
    graph.input(ALL_LOGITS, 'float32', ['rows', 1, vocabSize]),
    graph.int64([-1, vocabSize]),
  ])
  const asked = graph.node('Gather', [all, graph.input(ASKED_ROWS, 'int32', ['n'])], { attributes: { axis: 0 } })
  const logits = writePadding(graph, shape, asked)
  const changed = form.changed ? writeChanges(graph, shape, logits) : logits
  const scores = form.masked ? graph.node('Add', [changed, writeMask(graph, shape)]) : changed
  const { values, tokens } = writeLargest(graph, shape, scores)
  const columns = outputColumns(shape)
  const write = (name: string, operator: string, inputs: string[], attributes = {}): string => {
    graph.nodes(operator, inputs, { attributes }, [name])
    graph.declareOutput(name, 'float32', ['n', columns[name]!])
    return name
  }
  write(LISTED, 'Cast', [tokens], { to: FLOAT })
  write(LISTED_LOGITS, 'GatherElements', [logits, tokens], { axis: 1 })
  const best = write(BEST, 'Slice', [values, graph.int64([0]), graph.int64([1]), graph.int64([1])])
  const scaled = graph.node('Mul', [graph.node('Sub', [scores, best]), graph.input(SCALES, 'float32', ['n', 1])])
  const above = graph.node('Sub', [logits, best])
  for (const [name, exponents] of [
    [SUMS, scaled],
    [LOGIT_SUMS, above],
  ] as const) {
    const sums = writeSums(graph, shape, graph.node('Exp', [exponents]))
    write(name, 'Reshape', [sums, graph.int64([-1, columns[name]!])])
  }
  return graph.toModel()
}

export function buildSpanGraph({ spanLength }: ShortlistShape): Uint8Array {
  const graph = new CapturableWriter('float32', DEVICE_OPSET)
  const flat = graph.input(FLAT_LOGITS, 'float32', ['numbers'])
  const starts = graph.input(STARTS, 'int32', ['m', 1])
  const places = graph.node('Add', [starts, graph.input(OFFSETS, 'int32', [1, spanLength])])
  graph.nodes('Gather', [flat, places], { attributes: { axis: 0 } }, [SPANS])
  graph.declareOutput(SPANS, 'float32', ['m', spanLength])
  return graph.toModel()
}

/** `[n, width]`. */
function writePadding(graph: GraphWriter, { vocabSize, width }: ShortlistShape, logits: string): string {
  if (width === vocabSize) {
    return logits
  }
  const filled = graph.node('Gather', [logits, graph.input(COLUMNS, 'int32', [width])], { attributes: { axis: 1 } })
  return graph.node('Add', [filled, graph.input(COLUMN_SCORES, 'float32', [1, width])])
}

/** Columns `[start, end)`. */
function slice(graph: GraphWriter, value: string, start: number, end: number): string {
  return graph.node('Slice', [value, graph.int64([start]), graph.int64([end]), graph.int64([1])])
}

function reshape(graph: GraphWriter, value: string, shape: readonly number[]): string {
  return graph.node('Reshape', [value, graph.int64(shape)])
}

function writeChanges(graph: GraphWriter, { width }: ShortlistShape, logits: string): string {
  const [bias, repetition, penalty] = [BIAS, REPETITION, PENALTY].map((name) =>
    graph.input(name, 'float32', ['changes']),
  )
  const places = graph.input(PLACES, 'int32', ['changes'])
  const flat = reshape(graph, logits, [-1])
  const biased = graph.node('Add', [graph.node('Gather', [flat, places], { attributes: { axis: 0 } }), bias!])
  const repeated = graph.node('Where', [
    graph.node('Greater', [biased, graph.float(0)]),
    graph.node('Div', [biased, repetition!]),
    graph.node('Mul', [biased, repetition!]),
  ])
  const changed = graph.node('Sub', [repeated, penalty!])
  const scores = graph.node('ScatterElements', [flat, places, changed], { attributes: { axis: 0 } })
  return reshape(graph, scores, [-1, width])
}

/** `[n, width]`: 0 or -Infinity. */
function writeMask(graph: GraphWriter, { width }: ShortlistShape): string {
  const bytes = Math.ceil(width / 8)
  const masks = graph.input(MASKS, 'uint8', ['masks', bytes])
  const rows = graph.node('Gather', [masks, graph.input(MASK_ROWS, 'int32', ['n'])], { attributes: { axis: 0 } })
  const codes = graph.node('Cast', [rows], { attributes: { to: INT32 } })
  const table = graph.input(BIT_SCORES, 'float32', [256, 8])
  const scores = reshape(graph, graph.node('Gather', [table, codes], { attributes: { axis: 0 } }), [-1, 8 * bytes])
  return 8 * bytes === width ? scores : slice(graph, scores, 0, width)
}

/** The largest values of each row, falling, and their columns. */
function writeLargest(
  graph: GraphWriter,
  { width, length }: ShortlistShape,
  scores: string,
): { values: string; tokens: string } {
  let values = scores
  let tokens: string | undefined
  let count = width
  while (count > FEW) {
    const groups = count / GROUP
    const [top, place] = topK(graph, reshape(graph, values, [-1, groups, GROUP]), length)
    const firsts = Array.from({ length: groups }, (_, group) => group * GROUP)
    const column = graph.node('Add', [place, reshape(graph, graph.int64(firsts), [groups, 1])])
    count = groups * length
    values = reshape(graph, top, [-1, count])
    tokens = behind(graph, tokens, reshape(graph, column, [-1, count]))
  }
  const [top, place] = topK(graph, values, length)
  return { values: top, tokens: behind(graph, tokens, place) }
}

/** Tokens at these columns of the numbers that were chosen before. */
function behind(graph: GraphWriter, tokens: string | undefined, columns: string): string {
  return tokens === undefined ? columns : graph.node('GatherElements', [tokens, columns], { attributes: { axis: 1 } })
}

function topK(graph: GraphWriter, values: string, k: number): [values: string, indices: string] {
  const [top, place] = graph.nodes('TopK', [values, graph.int64([k])], { attributes: { axis: -1 }, outputs: 2 })
  return [top!, place!]
}

/** `[n · spans, 1]`. A product with ones: ReduceSum would want cuDNN. */
function writeSums(graph: GraphWriter, { spanLength }: ShortlistShape, terms: string): string {
  const ones = graph.input(ONES, 'float32', [spanLength, 1])
  return graph.node('MatMul', [reshape(graph, terms, [-1, spanLength]), ones])
}
