/** One matrix of the plan in the graph: base product in the chosen weight format, and what an adapter adds. */

import { QUANTISED_BLOCK } from '../quantise.ts'
import type { GraphForm } from './graph-form.ts'
import { loraInputs } from './graph-names.ts'
import { type GraphWriter, MICROSOFT } from './graph-writer.ts'
import type { MatrixPlan } from './weight-plan.ts'

const BITS = { int8: 8, int4: 4 } as const

/** `x`: `[…, in]`; returns `[…, out]`. */
export function writeLinear(graph: GraphWriter, form: GraphForm, matrix: MatrixPlan, x: string): string {
  const base = writeBase(graph, form, matrix, x)
  return form.lora === 'uniform' ? writeUniformLora(graph, form, matrix, x, base) : base
}

function writeBase(graph: GraphWriter, { weights }: GraphForm, matrix: MatrixPlan, x: string): string {
  const { name, inFeatures, outFeatures } = matrix
  const bias = matrix.hasBias ? graph.weight(`${name}.bias`, 'float32', [outFeatures]) : ''
  if (weights === 'f32') {
    const weight = graph.weight(`${name}.weight`, 'float32', [outFeatures, inFeatures])
    const product = graph.node('FusedMatMul', [x, weight], { domain: MICROSOFT, attributes: { transB: 1 } })
    return bias === '' ? product : graph.node('Add', [product, bias])
  }
  const bits = BITS[weights]
  const blocks = Math.ceil(inFeatures / QUANTISED_BLOCK)
  const weight = graph.weight(`${name}.weight`, 'uint8', [outFeatures, blocks, (QUANTISED_BLOCK * bits) / 8])
  const scales = graph.weight(`${name}.scales`, 'float32', [outFeatures, blocks])
  const product = graph.node('MatMulNBits', [x, weight, scales], {
    domain: MICROSOFT,
    // accuracy_level 4: activations are quantised to int8 block by block, each row by itself.
    attributes: { K: inFeatures, N: outFeatures, bits, block_size: QUANTISED_BLOCK, accuracy_level: 4 },
  })
  return bias === '' ? product : graph.node('Add', [product, bias])
}

/** All rows use one adapter. */
function writeUniformLora(graph: GraphWriter, form: GraphForm, matrix: MatrixPlan, x: string, base: string): string {
  const deltas = matrix.parts.map((part, i) => {
    const names = loraInputs(matrix, i)
    const a = graph.input(names.a, 'float32', [`${names.a}.rank`, part.inFeatures])
    const b = graph.input(names.b, 'float32', [`${names.a}.rank`, part.outFeatures])
    const shrunk = graph.node('FusedMatMul', [x, a], { domain: MICROSOFT, attributes: { transB: 1 } })
    return graph.node('MatMul', [shrunk, b])
  })
  const delta = deltas.length === 1 ? deltas[0]! : graph.node('Concat', deltas, { attributes: { axis: -1 } })
  if (!form.extras) {
    return graph.node('Add', [base, delta])
  }
  const { gain, shift } = loraInputs(matrix, 0)
  const scaled = graph.node('Mul', [base, graph.input(gain, 'float32', [matrix.outFeatures])])
  const shifted = graph.node('Add', [scaled, graph.input(shift, 'float32', [matrix.outFeatures])])
  return graph.node('Add', [shifted, delta])
}
