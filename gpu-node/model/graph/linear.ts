/** One matrix of the plan in the graph: base product in the chosen weight format, and what an adapter adds. */

import { tiledBytes } from '../../ort/linear-kernel/linear-layout.ts'
import { linearOpType } from '../../ort/linear-kernel/linear-op.ts'
import { kernelObjection } from '../../ort/lora-kernel/kernel-layout.ts'
import { LORA_OP } from '../../ort/lora-kernel/lora-op.ts'
import { OP_DOMAIN } from '../../ort/machine-code/custom-op.ts'
import { QUANTISED_BLOCK } from '../quantise.ts'
import { kernelShape } from './adapter-table.ts'
import { type BuildForm, isTiled, matrixBits } from './graph-form.ts'
import { HEAD_SIZES, LORA_HEAD_ROWS, LORA_ROWS, loraInputs } from './graph-names.ts'
import { type GraphWriter, MICROSOFT } from './graph-writer.ts'
import { writeStepTokens } from './step-tokens.ts'
import { isHead, type MatrixPlan } from './weight-plan.ts'

/** `x`: `[…, in]`; returns `[…, out]`. */
export function writeLinear(graph: GraphWriter, form: BuildForm, matrix: MatrixPlan, x: string): string {
  const base = writeBase(graph, form, matrix, x)
  if (form.adapt !== undefined) {
    return form.adapt(graph, matrix, x, base)
  }
  if (form.lora === 'none' || (isHead(matrix) && !form.head)) {
    return base
  }
  // Adapters of a matrix that the kernel cannot take never come to a kernel's graph: they are packed for `uniform`.
  if (form.lora === 'kernel' && !kernelTakes(matrix)) {
    return base
  }
  const fit = form.extras ? writeExtras(graph, matrix, base) : base
  return form.lora === 'kernel' ? writeKernelLora(graph, form, matrix, x, fit) : writeUniformLora(graph, matrix, x, fit)
}

function kernelTakes({ inFeatures, parts }: MatrixPlan): boolean {
  const segments = parts.map((part) => ({ rank: 1, outs: part.outFeatures }))
  return kernelObjection(inFeatures, segments) === undefined
}

function writeBase(graph: GraphWriter, form: BuildForm, matrix: MatrixPlan, x: string): string {
  const { weights } = form
  const { name, inFeatures, outFeatures } = matrix
  const bias = matrix.hasBias ? graph.weight(`${name}.bias`, 'float32', [outFeatures]) : ''
  if (weights === 'f32') {
    const weight = graph.weight(`${name}.weight`, 'float32', [outFeatures, inFeatures])
    const product = graph.node('FusedMatMul', [x, weight], { domain: MICROSOFT, attributes: { transB: 1 } })
    return bias === '' ? product : graph.node('Add', [product, bias])
  }
  if (isTiled(form, matrix)) {
    const product = writeTiled(graph, matrix, x)
    return bias === '' ? product : graph.node('Add', [product, bias])
  }
  const bits = matrixBits(weights, matrix)
  const blocks = Math.ceil(inFeatures / QUANTISED_BLOCK)
  const inputs = [
    graph.weight(`${name}.weight`, 'uint8', [outFeatures, blocks, (QUANTISED_BLOCK * bits) / 8]),
    graph.weight(`${name}.scales`, 'float32', [outFeatures, blocks]),
  ]
  if (bits === 4) {
    inputs.push(graph.weight(`${name}.zeros`, 'uint8', [outFeatures, Math.ceil(blocks / 2)]))
  }
  const product = graph.node('MatMulNBits', [x, ...inputs], {
    domain: MICROSOFT,
    // accuracy_level 4: activations are quantised to int8 block by block, each row by itself.
    attributes: { K: inFeatures, N: outFeatures, bits, block_size: QUANTISED_BLOCK, accuracy_level: 4 },
  })
  return bias === '' ? product : graph.node('Add', [product, bias])
}

function writeTiled(graph: GraphWriter, matrix: MatrixPlan, x: string): string {
  const { name, inFeatures, outFeatures } = matrix
  const weight = graph.weight(`${name}.tiles`, 'uint8', [tiledBytes(inFeatures, outFeatures)])
  const sizes = isHead(matrix) ? graph.input(HEAD_SIZES, 'int64', [3]) : writeStepTokens(graph)
  const shape = graph.int64([inFeatures, outFeatures])
  const options = { domain: OP_DOMAIN, outputs: 2 }
  const [product] = graph.nodes(linearOpType(inFeatures), [x, weight, shape, sizes], options)
  graph.describe(product!, 'float32', [...tokenSizes(matrix), outFeatures])
  return product!
}

/** The first two dimensions of what a matrix reads and writes. */
function tokenSizes(matrix: MatrixPlan): string[] {
  return isHead(matrix) ? ['logit_rows', 'one'] : ['rows', 'tokens']
}

/** All rows use one adapter. */
function writeUniformLora(graph: GraphWriter, matrix: MatrixPlan, x: string, base: string): string {
  const deltas = matrix.parts.map((part, i) => {
    const names = loraInputs(matrix, i)
    const a = graph.input(names.a, 'float32', [`${names.a}.rank`, part.inFeatures])
    const b = graph.input(names.b, 'float32', [`${names.a}.rank`, part.outFeatures])
    const shrunk = graph.node('FusedMatMul', [x, a], { domain: MICROSOFT, attributes: { transB: 1 } })
    return graph.node('MatMul', [shrunk, b])
  })
  const delta = deltas.length === 1 ? deltas[0]! : graph.node('Concat', deltas, { attributes: { axis: -1 } })
  return graph.node('Add', [base, delta])
}

/** Each row its own adapter: the kernel finds the matrices through the rows' tables. */
function writeKernelLora(graph: GraphWriter, form: BuildForm, matrix: MatrixPlan, x: string, base: string): string {
  const rows = graph.input(isHead(matrix) ? LORA_HEAD_ROWS : LORA_ROWS, 'int64', [
    `${isHead(matrix) ? LORA_HEAD_ROWS : LORA_ROWS}.words`,
  ])
  const shape = graph.int64(kernelShape(form.table, matrix))
  const adapted = graph.node(LORA_OP.type, [base, x, rows, shape], { domain: LORA_OP.domain })
  graph.describe(adapted, 'float32', [...tokenSizes(matrix), matrix.outFeatures])
  return adapted
}

/** `base·gain + shift`, by row or the same for all. */
function writeExtras(graph: GraphWriter, matrix: MatrixPlan, base: string): string {
  const { gain, shift } = loraInputs(matrix, 0)
  const shape = [`${gain}.rows`, 1, matrix.outFeatures]
  const scaled = graph.node('Mul', [base, graph.input(gain, 'float32', shape)])
  return graph.node('Add', [scaled, graph.input(shift, 'float32', shape)])
}
