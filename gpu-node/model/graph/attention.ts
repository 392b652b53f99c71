/** Attention over the KV cache: one fused product for q, k and v, norms on them, our kernel or GroupQueryAttention, output product. */

import {
  type AttentionShape,
  floatBits,
  type KvFormat,
  shapeWords,
} from '../../ort/attention-kernel/attention-layout.ts'
import { attentionOpType } from '../../ort/attention-kernel/attention-op.ts'
import { OP_DOMAIN } from '../../ort/machine-code/custom-op.ts'
import type { DecoderSpec, RopeTable } from '../decoder-spec.ts'
import type { BuildForm, KernelKv } from './graph-form.ts'
import { kvNames, LAST_POSITIONS, POSITION_IDS, TOTAL_POSITIONS } from './graph-names.ts'
import { type GraphWriter, MICROSOFT } from './graph-writer.ts'
import { writeLinear } from './linear.ts'
import { writeNorm } from './norm.ts'
import { writeStepTokens } from './step-tokens.ts'
import type { LayerPlan, NormPlan } from './weight-plan.ts'

export function writeAttention(
  graph: GraphWriter,
  form: BuildForm,
  decoder: DecoderSpec,
  plan: LayerPlan,
  layer: number,
  x: string,
): string {
  const context = writeContext(graph, form, decoder, plan, layer, writeLinear(graph, form, plan.qkv, x))
  return writeLinear(graph, form, plan.o, context)
}

/** What lies between the products of q, k and v and that of the output. */
export function writeContext(
  graph: GraphWriter,
  { kv }: BuildForm,
  decoder: DecoderSpec,
  plan: LayerPlan,
  layer: number,
  product: string,
): string {
  const qkv = writeQkv(graph, decoder, plan, product)
  return kv === undefined
    ? writeGroupQueryAttention(graph, decoder, plan, layer, qkv)
    : writeKernelAttention(graph, kv, decoder, plan, layer, qkv)
}

function writeGroupQueryAttention(
  graph: GraphWriter,
  decoder: DecoderSpec,
  plan: LayerPlan,
  layer: number,
  [query, key, value]: Qkv,
): string {
  const { heads, kvHeads, headSize } = decoder
  const { attention } = plan.spec
  const kvShape = ['rows', kvHeads, 'max_positions', headSize]
  const names = kvNames(layer)
  const rope = ropeOf(decoder, plan)
  const inputs = [
    query,
    key,
    value,
    graph.input(names.pastKey, 'float32', kvShape),
    graph.input(names.pastValue, 'float32', kvShape),
    LAST_POSITIONS,
    TOTAL_POSITIONS,
  ]
  if (rope !== undefined) {
    inputs.push(...writeRopeTables(graph, rope, attention.ropeTable))
    if (rope.long !== undefined) {
      inputs.push(graph.input(POSITION_IDS, 'int64', ['rows', 'tokens']))
    }
  }
  const [context] = graph.nodes(
    'GroupQueryAttention',
    inputs,
    {
      domain: MICROSOFT,
      attributes: {
        num_heads: heads,
        kv_num_heads: kvHeads,
        scale: { float: attention.scale },
        softcap: { float: attention.softcap ?? 0 },
        local_window_size: attention.slidingWindow ?? -1,
        do_rotary: rope === undefined ? 0 : 1,
      },
      outputs: 3,
    },
    [`layers.${layer}.context`, names.presentKey, names.presentValue],
  )
  graph.declareOutput(names.presentKey, 'float32', kvShape)
  graph.declareOutput(names.presentValue, 'float32', kvShape)
  return context!
}

/** The kernel writes keys and values into the cache itself: its inputs are changed in place. */
function writeKernelAttention(
  graph: GraphWriter,
  kv: KernelKv,
  decoder: DecoderSpec,
  plan: LayerPlan,
  layer: number,
  [query, key, value]: Qkv,
): string {
  const { heads, kvHeads, headSize } = decoder
  const { attention } = plan.spec
  const names = kvNames(layer)
  const cacheType = kv.format === 'f32' ? 'float32' : 'float16'
  const [queryWidth, kvWidth] = [heads * headSize * 4, kvHeads * headSize * 4]
  const packed = key === ''
  const packedWidth = queryWidth + 2 * kvWidth
  const words = shapeWords({
    kvHeads,
    maxPositions: kv.positions,
    window: attention.slidingWindow ?? 0,
    queryStride: packed ? packedWidth : queryWidth,
    keyStride: packed ? packedWidth : kvWidth,
    valueStride: packed ? packedWidth : kvWidth,
    keyOffset: packed ? queryWidth : 0,
    valueOffset: packed ? queryWidth + kvWidth : 0,
    scale: floatBits(attention.scale),
    softcap: attention.softcap === undefined ? 0 : floatBits(attention.softcap),
  })
  const rope = ropeOf(decoder, plan)
  const inputs = [
    ...(packed ? [query, query, query] : [query, key, value]),
    graph.input(names.pastKey, cacheType, [`${names.pastKey}.elements`]),
    graph.input(names.pastValue, cacheType, [`${names.pastValue}.elements`]),
    writeStepTokens(graph),
    graph.int64(words),
    ...(rope === undefined ? [] : writeRopeTables(graph, rope, attention.ropeTable)),
  ]
  const context = graph.node(attentionOpType(attentionShape(decoder, rope, kv.format)), inputs, { domain: OP_DOMAIN })
  graph.describe(context, 'float32', ['rows', 'tokens', heads * headSize])
  return context
}

/** The shapes of heads that the kernel must know, one for each rotary width of a model. */
export function attentionShape(decoder: DecoderSpec, rope: RopeTable | undefined, kv: KvFormat): AttentionShape {
  const { headSize, heads, kvHeads } = decoder
  return { headSize, group: heads / kvHeads, rotaryHalf: (rope?.rotaryDim ?? 0) / 2, kv }
}

/** Queries, keys, values; packed in the first where the others are empty. */
type Qkv = [string, string, string]

function ropeOf(decoder: DecoderSpec, { spec }: LayerPlan): RopeTable | undefined {
  const { ropeTable } = spec.attention
  return ropeTable === undefined ? undefined : decoder.ropeTables[ropeTable]
}

/** cos and sin. */
function writeRopeTables(graph: GraphWriter, rope: RopeTable, index: number | undefined): string[] {
  const rows = rope.positions * (rope.long === undefined ? 1 : 2)
  return ['cos', 'sin'].map((name) => graph.weight(`rope.${index}.${name}`, 'float32', [rows, rope.rotaryDim / 2]))
}

/** Attention takes q, k and v packed in one; norms on q and k need them apart. */
function writeQkv(graph: GraphWriter, decoder: DecoderSpec, plan: LayerPlan, qkv: string): Qkv {
  const { qNorm, kNorm } = plan
  if (qNorm === undefined || kNorm === undefined) {
    return [qkv, '', '']
  }
  const { heads, kvHeads, headSize } = decoder
  const sizes = graph.int64([heads * headSize, kvHeads * headSize, kvHeads * headSize])
  const [q, k, v] = graph.nodes('Split', [qkv, sizes], { attributes: { axis: -1 }, outputs: 3 })
  const perHead = plan.spec.attention.qkNorm?.perHead === true
  const norm = (it: NormPlan, value: string, count: number): string =>
    perHead ? writeHeadNorm(graph, it, value, count, headSize) : writeNorm(graph, it, value)
  return [norm(qNorm, q!, heads), norm(kNorm, k!, kvHeads), v!]
}

function writeHeadNorm(graph: GraphWriter, norm: NormPlan, x: string, heads: number, headSize: number): string {
  const apart = graph.node('Reshape', [x, graph.int64([0, 0, heads, headSize])])
  return graph.node('Reshape', [writeNorm(graph, norm, apart), graph.int64([0, 0, heads * headSize])])
}
