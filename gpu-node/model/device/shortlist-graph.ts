/**
 * The sampler's heavy part as ONNX graphs: logits' rows with bias, penalties and grammar masks, their largest scores, and sums of
 * exponentials by span. Float32 throughout. Only operators with CUDA kernels that read memory once: the largest are found group
 * by group, as CUDA's TopK sorts up to 256 numbers in one block, and takes milliseconds for a vocabulary.
 */

import { GraphWriter } from '../graph/graph-writer.ts'
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
}

/** `[rows, 1, vocab]`: all logits; `[n]`, int32: the rows asked for. */
export const ALL_LOGITS = 'logits'
export const ASKED_ROWS = 'rows'
/** `[n, 1]`: 1 / temperature. */
export const SCALES = 'scales'
/** `[E]`: index among the asked rows' numbers, int32, and `ScoreChanges`' numbers. */
export const PLACES = 'change.places'
export const BIAS = 'change.bias'
export const REPETITION = 'change.repetition'
export const PENALTY = 'change.penalty'
/** `[n]`, int32: each row's among the masks; `[masks, ⌈vocab / 8⌉]`, uint8: one bit a token, the lowest first. */
export const MASK_ROWS = 'mask.rows'
export const MASKS = 'masks'
/** `[256, 8]`: 0 where a bit is set, and else -Infinity. `[spanLength, 1]`: ones. */
export const BIT_SCORES = 'bit.scores'
export const ONES = 'ones'
/** `[n, 2·length + 1 + 2·spans]`: tokens, logits, best score, sums, and sums over the unchanged logits. */
export const PACKED = 'packed'

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

export function spanCount({ vocabSize, spanLength }: ShortlistShape): number {
  return Math.ceil(vocabSize / spanLength)
}

/** Numbers of a row of `PACKED`. */
export function packedWidth(shape: ShortlistShape): number {
  return 2 * shape.length + 1 + 2 * spanCount(shape)
}

export function buildShortlistGraph(shape: ShortlistShape, form: ShortlistForm): Uint8Array {
  const { vocabSize } = shape
  const graph = new GraphWriter('float32', DEVICE_OPSET)
  const all = graph.node('Reshape', [
    graph.input(ALL_LOGITS, 'float32', ['rows', 1, vocabSize]),
    graph.int64([-1, vocabSize]),
  ])
  const logits = graph.node('Gather', [all, graph.input(ASKED_ROWS, 'int32', ['n'])], { attributes: { axis: 0 } })
  const changed = form.changed ? writeChanges(graph, shape, logits) : logits
  const scores = form.masked ? graph.node('Add', [changed, writeMask(graph, shape)]) : changed
  const { values, tokens } = writeLargest(graph, shape, scores)
  const best = slice(graph, values, 0, 1)
  const scaled = graph.node('Mul', [graph.node('Sub', [scores, best]), graph.input(SCALES, 'float32', ['n', 1])])
  const sums = writeSums(graph, shape, graph.node('Exp', [scaled]))
  const logitSums = writeSums(graph, shape, graph.node('Exp', [graph.node('Sub', [logits, best])]))
  const parts = [
    graph.node('Cast', [tokens], { attributes: { to: FLOAT } }),
    graph.node('GatherElements', [logits, tokens], { attributes: { axis: 1 } }),
    best,
    sums,
    logitSums,
  ]
  graph.nodes('Concat', parts, { attributes: { axis: 1 } }, [PACKED])
  graph.declareOutput(PACKED, 'float32', ['n', packedWidth(shape)])
  return graph.toModel()
}

export function buildSpanGraph({ spanLength }: ShortlistShape): Uint8Array {
  const graph = new GraphWriter('float32', DEVICE_OPSET)
  const flat = graph.input(FLAT_LOGITS, 'float32', ['numbers'])
  const starts = graph.input(STARTS, 'int32', ['m', 1])
  const places = graph.node('Add', [starts, graph.input(OFFSETS, 'int32', [1, spanLength])])
  graph.nodes('Gather', [flat, places], { attributes: { axis: 0 } }, [SPANS])
  graph.declareOutput(SPANS, 'float32', ['m', spanLength])
  return graph.toModel()
}

/** Columns `[start, end)`. */
function slice(graph: GraphWriter, value: string, start: number, end: number): string {
  return graph.node('Slice', [value, graph.int64([start]), graph.int64([end]), graph.int64([1])])
}

function reshape(graph: GraphWriter, value: string, shape: readonly number[]): string {
  return graph.node('Reshape', [value, graph.int64(shape)])
}

function writeChanges(graph: GraphWriter, { vocabSize }: ShortlistShape, logits: string): string {
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
  return reshape(graph, scores, [-1, vocabSize])
}

/** `[n, vocab]`: 0 or -Infinity. */
function writeMask(graph: GraphWriter, { vocabSize }: ShortlistShape): string {
  const bytes = Math.ceil(vocabSize / 8)
  const masks = graph.input(MASKS, 'uint8', ['masks', bytes])
  const rows = graph.node('Gather', [masks, graph.input(MASK_ROWS, 'int32', ['n'])], { attributes: { axis: 0 } })
  const codes = graph.node('Cast', [rows], { attributes: { to: INT32 } })
  const table = graph.input(BIT_SCORES, 'float32', [256, 8])
  const scores = reshape(graph, graph.node('Gather', [table, codes], { attributes: { axis: 0 } }), [-1, 8 * bytes])
  return 8 * bytes === vocabSize ? scores : slice(graph, scores, 0, vocabSize)
}

/** The largest values of each row, falling, and their columns. */
function writeLargest(
  graph: GraphWriter,
  { vocabSize, length }: ShortlistShape,
  scores: string,
): { values: string; tokens: string } {
  let values = scores
  let tokens: string | undefined
  let count = vocabSize
  while (count > FEW) {
    const groups = Math.floor(count / GROUP)
    const rest = count - groups * GROUP
    const whole = rest === 0 ? values : slice(graph, values, 0, groups * GROUP)
    const [top, place] = topK(graph, reshape(graph, whole, [-1, groups, GROUP]), length)
    const firsts = Array.from({ length: groups }, (_, group) => group * GROUP)
    const column = graph.node('Add', [place, reshape(graph, graph.int64(firsts), [groups, 1])])
    const tops = [reshape(graph, top, [-1, groups * length])]
    const columns = [reshape(graph, column, [-1, groups * length])]
    if (rest > 0) {
      const left = slice(graph, values, groups * GROUP, count)
      const [topOfRest, placeOfRest] = topK(graph, left, Math.min(rest, length))
      tops.push(topOfRest)
      columns.push(graph.node('Add', [placeOfRest, graph.int64([groups * GROUP])]))
    }
    const join = (parts: string[]) =>
      parts.length === 1 ? parts[0]! : graph.node('Concat', parts, { attributes: { axis: 1 } })
    values = join(tops)
    tokens = behind(graph, tokens, join(columns))
    count = groups * length + Math.min(rest, length)
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

/** `[n, spans]`. A product with ones: ReduceSum would want cuDNN. */
function writeSums(graph: GraphWriter, { vocabSize, spanLength }: ShortlistShape, terms: string): string {
  const spans = Math.floor(vocabSize / spanLength)
  const rest = vocabSize - spans * spanLength
  const ones = graph.input(ONES, 'float32', [spanLength, 1])
  const whole = rest === 0 ? terms : slice(graph, terms, 0, spans * spanLength)
  const sums = reshape(graph, graph.node('MatMul', [reshape(graph, whole, [-1, spanLength]), ones]), [-1, spans])
  if (rest === 0) {
    return sums
  }
  const few = graph.node('Slice', [ones, graph.int64([0]), graph.int64([rest]), graph.int64([0])])
  const last = graph.node('MatMul', [slice(graph, terms, spans * spanLength, vocabSize), few])
  return graph.node('Concat', [sums, last], { attributes: { axis: 1 } })
}
