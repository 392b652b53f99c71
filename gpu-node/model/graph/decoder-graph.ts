/** A whole decoder as an ONNX model, in one of its forms. */

import type { DecoderSpec } from '../decoder-spec.ts'
import { layOutAdapterTable } from './adapter-table.ts'
import { writeAttention } from './attention.ts'
import { writeFusedLayers } from './fused-layers.ts'
import { type BuildForm, type GraphForm, isFused } from './graph-form.ts'
import {
  EMBEDDINGS,
  HEAD_SIZES,
  HIDDEN,
  HIDDEN_ROWS,
  LAST_POSITIONS,
  LOGIT_ROWS,
  LOGITS,
  TOTAL_POSITIONS,
} from './graph-names.ts'
import { GraphWriter } from './graph-writer.ts'
import { writeLinear } from './linear.ts'
import { writeMlp } from './mlp.ts'
import { type Residual, writeAddNorm, writeNorm } from './norm.ts'
import { writeStepTokens } from './step-tokens.ts'
import type { NormPlan, WeightPlan } from './weight-plan.ts'

export function buildDecoderGraph(decoder: DecoderSpec, plan: WeightPlan, given: GraphForm): Uint8Array {
  const fused = given.lora !== 'uniform' && isFused(given, plan)
  const form = { ...given, fused, table: layOutAdapterTable(plan, isFused(given, plan)) }
  const graph = new GraphWriter()
  const embeddings = graph.input(EMBEDDINGS, 'float32', ['rows', 'tokens', decoder.hiddenSize])
  declareStepInputs(graph, form)
  writeHead(graph, decoder, plan, form, writeLayers(graph, form, decoder, plan, embeddings))
  return graph.toModel()
}

/** Declared even where no node reads them, so that all runs of a form bind the same. */
function declareStepInputs(graph: GraphWriter, { kv, tiled }: GraphForm): void {
  if (kv === undefined) {
    graph.input(LAST_POSITIONS, 'int32', ['rows'])
    graph.input(TOTAL_POSITIONS, 'int32', [])
  }
  if (tiled || kv !== undefined) {
    writeStepTokens(graph)
  }
  if (tiled) {
    graph.input(HEAD_SIZES, 'int64', [3])
  }
}

/** From embeddings `[rows, tokens, hidden]` to the output of the last norm. */
export function writeLayers(
  graph: GraphWriter,
  form: BuildForm,
  decoder: DecoderSpec,
  plan: WeightPlan,
  embeddings: string,
): string {
  if (form.fused === true) {
    return writeFusedLayers(graph, form, decoder, plan, embeddings)
  }
  let residual = enter(graph, plan.layers[0]?.attentionNorm, embeddings)
  for (const [i, layer] of plan.layers.entries()) {
    const attention = writeAttention(graph, form, decoder, layer, i, residual.input)
    residual = join(graph, residual, attention, layer.postAttentionNorm, layer.mlpNorm)
    const mlp = writeMlp(graph, form, layer, residual.input)
    const next = plan.layers[i + 1]
    residual = join(graph, residual, mlp, layer.postMlpNorm, next === undefined ? plan.finalNorm : next.attentionNorm)
  }
  return residual.input
}

function enter(graph: GraphWriter, norm: NormPlan | undefined, x: string): Residual {
  return { sum: x, input: norm === undefined ? x : writeNorm(graph, norm, x) }
}

/** The branch, normed where the layer says so, joins the stream, which is normed for the next branch. */
function join(
  graph: GraphWriter,
  residual: Residual,
  branch: string,
  postNorm: NormPlan | undefined,
  nextNorm: NormPlan | undefined,
): Residual {
  const normed = postNorm === undefined ? branch : writeNorm(graph, postNorm, branch)
  return writeAddNorm(graph, nextNorm, residual.sum, normed)
}

/** Final hidden states of the tokens asked for, and logits of those asked for among them. */
function writeHead(graph: GraphWriter, decoder: DecoderSpec, plan: WeightPlan, form: BuildForm, x: string): void {
  const { hiddenSize, vocabSize, head } = decoder
  const flat = graph.node('Reshape', [x, graph.int64([-1, hiddenSize])])
  const hiddenRows = graph.input(HIDDEN_ROWS, 'int64', ['hidden_rows'])
  graph.nodes('Gather', [flat, hiddenRows], { attributes: { axis: 0 }, outputs: 1 }, [HIDDEN])
  graph.declareOutput(HIDDEN, 'float32', ['hidden_rows', hiddenSize])
  const logitRows = graph.input(LOGIT_ROWS, 'int64', ['logit_rows', 1])
  const chosen = graph.node('Gather', [HIDDEN, logitRows], { attributes: { axis: 0 } })
  let logits = writeLinear(graph, form, plan.head, chosen)
  if (head.softcap !== undefined) {
    const cap = graph.float(head.softcap)
    logits = graph.node('Mul', [graph.node('Tanh', [graph.node('Div', [logits, cap])]), cap])
  }
  graph.output(LOGITS, logits, 'float32', ['logit_rows', 1, vocabSize])
}
