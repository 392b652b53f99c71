/** Attention over the KV cache: one fused product for q, k and v, norms on them, GroupQueryAttention, output product. */

import type { DecoderSpec } from '../decoder-spec.ts'
import type { BuildForm } from './graph-form.ts'
import { kvNames, LAST_POSITIONS, POSITION_IDS, TOTAL_POSITIONS } from './graph-names.ts'
import { type GraphWriter, MICROSOFT } from './graph-writer.ts'
import { writeLinear } from './linear.ts'
import { writeNorm } from './norm.ts'
import type { LayerPlan, NormPlan } from './weight-plan.ts'

export function writeAttention(
  graph: GraphWriter,
  form: BuildForm,
  decoder: DecoderSpec,
  plan: LayerPlan,
  layer: number,
  x: string,
): string {
  const { heads, kvHeads, headSize } = decoder
  const { attention } = plan.spec
  const qkv = writeLinear(graph, form, plan.qkv, x)
  const [query, key, value] = writeQkv(graph, decoder, plan, qkv)
  const kvShape = ['rows', kvHeads, 'max_positions', headSize]
  const names = kvNames(layer)
  const rope = attention.ropeTable === undefined ? undefined : decoder.ropeTables[attention.ropeTable]
  const tableRows = rope === undefined ? 0 : rope.positions * (rope.long === undefined ? 1 : 2)
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
    for (const table of ['cos', 'sin']) {
      inputs.push(graph.weight(`rope.${attention.ropeTable}.${table}`, 'float32', [tableRows, rope.rotaryDim / 2]))
    }
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
  return writeLinear(graph, form, plan.o, context!)
}

/** GroupQueryAttention takes q, k and v packed in its first input; norms on q and k need them apart. */
function writeQkv(graph: GraphWriter, decoder: DecoderSpec, plan: LayerPlan, qkv: string): [string, string, string] {
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
