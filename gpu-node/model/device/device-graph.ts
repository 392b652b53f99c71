/** A decoder as an ONNX model whose inputs, KV, banks and tables all lie on one device. */

import type { DecoderSpec } from '../decoder-spec.ts'
import { layOutAdapterTable } from '../graph/adapter-table.ts'
import { writeLayers } from '../graph/decoder-graph.ts'
import type { BuildForm } from '../graph/graph-form.ts'
import { HIDDEN, HIDDEN_ROWS, LAST_POSITIONS, LOGIT_ROWS, LOGITS, TOTAL_POSITIONS } from '../graph/graph-names.ts'
import { type GraphWriter, MICROSOFT } from '../graph/graph-writer.ts'
import { writeLinear } from '../graph/linear.ts'
import { isHead, type MatrixPlan, type WeightPlan } from '../graph/weight-plan.ts'
import { type BankSizes, bankRows } from './bank-layout.ts'
import { CapturableWriter } from './capturable-writer.ts'
import { DEVICE_OPSET, type DeviceFloats, type DeviceForm, type DeviceFormat } from './device-form.ts'
import {
  bankNames,
  bankOwnersName,
  bankRowsName,
  EMBEDDING_DELTA,
  EMBEDDING_KEEP,
  EMBEDDING_TABLE,
  EXTRAS,
  HEAD_EXTRAS,
  HEAD_SLOTS,
  POSITION_TABLE,
  POSITIONS,
  SLOTS,
  TOKENS,
} from './device-names.ts'

export interface DeviceModel {
  decoder: DecoderSpec
  plan: WeightPlan
  format: DeviceFormat
  floats: DeviceFloats
  banks: BankSizes
}

/** ONNX's TensorProto.DataType. */
const BOOL = 9

/** A tied head in plain numbers is the embedding's table too. */
export function sharesHead({ decoder, plan, format }: Pick<DeviceModel, 'decoder' | 'plan' | 'format'>): boolean {
  return decoder.head.tied && format !== 'int8' && format !== 'int4' && plan.head.multiplier === 1
}

export function buildDeviceGraph(model: DeviceModel, form: DeviceForm): Uint8Array {
  const { decoder, plan, format, floats } = model
  const graph = new CapturableWriter(floats, DEVICE_OPSET)
  const build: BuildForm = {
    // Plain numbers: what they are is the writer's.
    weights: format === 'int8' || format === 'int4' ? format : 'f32',
    lora: 'none',
    extras: false,
    head: false,
    tiled: false,
    table: layOutAdapterTable(plan, false),
    adapt: adapter(model, form),
  }
  const embeddings = writeEmbedding(graph, model, form)
  graph.input(LAST_POSITIONS, 'int32', ['rows'])
  graph.input(TOTAL_POSITIONS, 'int32', [])
  writeHead(graph, model, build, writeLayers(graph, build, decoder, plan, embeddings))
  return graph.toModel()
}

function writeEmbedding(graph: GraphWriter, model: DeviceModel, form: DeviceForm): string {
  const { hiddenSize, vocabSize, embedding } = model.decoder
  const tokens = graph.input(TOKENS, 'int32', ['rows', 'tokens'])
  const name = sharesHead(model) ? `${model.plan.head.name}.weight` : EMBEDDING_TABLE
  const table = graph.weight(name, 'float32', [vocabSize, hiddenSize])
  let x = graph.node('Gather', [table, tokens], { attributes: { axis: 0 } })
  if (form.embedding) {
    const keep = graph.input(EMBEDDING_KEEP, 'float32', ['rows', 'tokens', 1])
    const delta = graph.input(EMBEDDING_DELTA, 'float32', ['rows', 'tokens', hiddenSize])
    x = graph.node('Add', [graph.node('Mul', [x, keep]), delta])
  }
  if ((embedding.multiplier ?? 1) !== 1) {
    x = graph.node('Mul', [x, graph.float(embedding.multiplier!)])
  }
  if (embedding.positionWeight !== undefined) {
    const positions = graph.input(POSITIONS, 'int32', ['rows', 'tokens'])
    const rows = graph.weight(POSITION_TABLE, 'float32', [embedding.positionRows!, hiddenSize])
    x = graph.node('Add', [x, graph.node('Gather', [rows, positions], { attributes: { axis: 0 } })])
  }
  return x
}

function writeHead(graph: GraphWriter, { decoder, plan }: DeviceModel, build: BuildForm, x: string): void {
  const { hiddenSize, vocabSize, head } = decoder
  const flat = graph.node('Reshape', [x, graph.int64([-1, hiddenSize])])
  const wanted = graph.input(HIDDEN_ROWS, 'int64', ['hidden_rows'])
  const hidden = graph.node('Gather', [flat, wanted], { attributes: { axis: 0 } })
  graph.float32Output(HIDDEN, hidden, ['hidden_rows', hiddenSize])
  const logitRows = graph.input(LOGIT_ROWS, 'int64', ['logit_rows', 1])
  const chosen = graph.node('Gather', [hidden, logitRows], { attributes: { axis: 0 } })
  let logits = writeLinear(graph, build, plan.head, chosen)
  if (head.softcap !== undefined) {
    const cap = graph.float(head.softcap)
    logits = graph.node('Mul', [graph.node('Tanh', [graph.node('Div', [logits, cap])]), cap])
  }
  graph.float32Output(LOGITS, logits, ['logit_rows', 1, vocabSize])
}

/** What the step's adapters make of a product: gain and shift of each token's, then their deltas from the banks. */
function adapter(model: DeviceModel, form: DeviceForm): NonNullable<BuildForm['adapt']> {
  const strangers = new Map<string, string>()
  return (graph, matrix, x, base) => {
    if (isHead(matrix) && !form.head) {
      return base
    }
    const fit = form.extras ? writeExtras(graph, model, matrix, base) : base
    return form.lora === 'none' ? fit : writeDelta(graph, model, form, strangers, matrix, x, fit)
  }
}

function writeDelta(
  graph: GraphWriter,
  { banks }: DeviceModel,
  form: DeviceForm,
  strangers: Map<string, string>,
  matrix: MatrixPlan,
  x: string,
  base: string,
): string {
  const parts = matrix.parts.length
  const { a, b } = bankNames(matrix)
  const rows = form.lora === 'gather' ? bankRows(parts, banks) : bankOwnersName(parts)
  const pick = (bank: string): string =>
    form.lora === 'window'
      ? bank
      : graph.node('Gather', [bank, graph.input(bankRowsName(parts), 'int32', [bankOwnersName(parts)])], {
          attributes: { axis: 0 },
        })
  const down = pick(graph.input(a, 'float32', [rows, matrix.inFeatures]))
  const up = pick(graph.input(b, 'float32', [rows, matrix.outFeatures]))
  const shrunk = graph.node('FusedMatMul', [x, down], { domain: MICROSOFT, attributes: { transB: 1 } })
  // A choice, no product: whatever another adapter makes of this token, infinite or not, is nothing here.
  const own = graph.node('Where', [writeStrangers(graph, strangers, matrix), graph.float(0), shrunk])
  return graph.node('Add', [base, graph.node('MatMul', [own, up])])
}

/** Bool `[rows, tokens, R]`: which bank rows are not each token's own. CUDA has no kernel for this opset's Equal. */
function writeStrangers(graph: GraphWriter, known: Map<string, string>, matrix: MatrixPlan): string {
  const parts = matrix.parts.length
  const head = isHead(matrix)
  const key = `${head}/${parts}`
  const written = known.get(key)
  if (written !== undefined) {
    return written
  }
  const slots = graph.input(head ? HEAD_SLOTS : SLOTS, 'int32', head ? ['logit_rows', 1, 1] : ['rows', 'tokens', 1])
  const owners = graph.input(bankOwnersName(parts), 'int32', [bankOwnersName(parts)])
  const distance = graph.node('Sub', [slots, owners])
  const strangers = graph.node('Cast', [distance], { attributes: { to: BOOL } })
  known.set(key, strangers)
  return strangers
}

function writeExtras(graph: GraphWriter, { banks }: DeviceModel, matrix: MatrixPlan, base: string): string {
  const head = isHead(matrix)
  const index = graph.input(head ? HEAD_EXTRAS : EXTRAS, 'int32', head ? ['logit_rows', 1] : ['rows', 'tokens'])
  const { gain, shift } = bankNames(matrix)
  const pick = (name: string): string => {
    const bank = graph.input(name, 'float32', [banks.slots + 1, matrix.outFeatures])
    return graph.node('Gather', [bank, index], { attributes: { axis: 0 } })
  }
  return graph.node('Add', [graph.node('Mul', [base, pick(gain)]), pick(shift)])
}
