/** One matrix of the plan in the graph: base product in the chosen weight format, and what an adapter adds. */

import { linearShapeWords, tiledBytes } from '../../ort/linear-kernel/linear-layout.ts'
import { linearOpType } from '../../ort/linear-kernel/linear-op.ts'
import { kernelObjection } from '../../ort/lora-kernel/kernel-layout.ts'
import { LORA_OP } from '../../ort/lora-kernel/lora-op.ts'
import { tiledObjection } from '../../ort/lora-kernel/tiled-layout.ts'
import { OP_DOMAIN } from '../../ort/machine-code/custom-op.ts'
import { QUANTISED_BLOCK } from '../quantise.ts'
import { kernelShape } from './adapter-table.ts'
import { type BuildForm, isTiled, matrixBits } from './graph-form.ts'
import { HEAD_SIZES, LORA_HEAD_ROWS, LORA_ROWS, loraInputs } from './graph-names.ts'
import { type GraphWriter, MICROSOFT } from './graph-writer.ts'
import { writeStepTokens } from './step-tokens.ts'
import { isHead, type MatrixPlan, type NormPlan } from './weight-plan.ts'

/** `x`: `[…, in]`; returns `[…, out]`. */
export function writeLinear(graph: GraphWriter, form: BuildForm, matrix: MatrixPlan, x: string): string {
  if (form.fused === true && isTiled(form, matrix)) {
    return writeFusedLinear(graph, form, matrix, { x })
  }
  const base = writeBase(graph, form, matrix, x)
  if (form.adapt !== undefined) {
    return form.adapt(graph, matrix, x, base)
  }
  if (form.lora === 'none' || (isHead(matrix) && !form.head)) {
    return base
  }
  const fit = form.extras ? writeExtras(graph, matrix, base) : base
  // Adapters of a matrix that the kernel cannot take never come to a kernel's graph: they are packed for `uniform`. Gains and
  // shifts of every matrix do, and are neutral there.
  if (form.lora === 'kernel' && !kernelTakes(form, matrix)) {
    return fit
  }
  if (form.lora === 'uniform') {
    return writeUniformLora(graph, matrix, x, fit)
  }
  return form.fused === true
    ? writeProduct(graph, form, matrix, { x, base: fit, adapters: true })
    : writeKernelLora(graph, form, matrix, x, fit)
}

function kernelTakes({ fused }: BuildForm, { inFeatures, parts }: MatrixPlan): boolean {
  const segments = parts.map((part) => ({ rank: 1, outs: part.outFeatures }))
  return (fused === true ? tiledObjection : kernelObjection)(inFeatures, segments) === undefined
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
    return writeProduct(graph, form, matrix, { x })
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

/** What the int8 product does beside multiplying. */
export interface Surroundings {
  x: string
  /** Norms x first; RMSNorm alone. */
  norm?: NormPlan | undefined
  /** The product's first half `g` and second half `u` become `silu(g)·u`. */
  gated?: boolean
  /** The output joins this sum. */
  addTo?: string
}

/** A matrix of a fused graph, with what its adapters add. */
export function writeFusedLinear(
  graph: GraphWriter,
  form: BuildForm,
  matrix: MatrixPlan,
  around: Surroundings,
): string {
  const adapters = form.lora === 'kernel' && (!isHead(matrix) || form.head)
  if (!adapters || !form.extras) {
    return writeProduct(graph, form, matrix, { ...around, adapters })
  }
  const { x, norm } = around
  const base = writeExtras(graph, matrix, writeProduct(graph, form, matrix, { x, norm }))
  return writeProduct(graph, form, matrix, { ...around, adapters, base })
}

/** `base`: in place of the matrix's product with x and its bias. */
function writeProduct(
  graph: GraphWriter,
  { table }: BuildForm,
  matrix: MatrixPlan,
  { x, norm, gated, addTo, adapters, base }: Surroundings & { adapters?: boolean; base?: string },
): string {
  const { name, inFeatures, outFeatures } = matrix
  const rows = isHead(matrix) ? LORA_HEAD_ROWS : LORA_ROWS
  const shape = linearShapeWords({
    outputs: outFeatures,
    activation: gated ? 'silu' : 'none',
    ...(norm === undefined ? {} : { epsilon: norm.spec.epsilon }),
    ...(adapters
      ? { adapterOffset: table.offsets.get(name)! * 8, parts: matrix.parts.map((part) => part.outFeatures) }
      : {}),
  })
  const own = base === undefined
  const inputs = [
    x,
    graph.int64(shape),
    isHead(matrix) ? graph.input(HEAD_SIZES, 'int64', [3]) : writeStepTokens(graph),
    own ? graph.weight(`${name}.tiles`, 'uint8', [tiledBytes(inFeatures, outFeatures)]) : '',
    norm === undefined ? '' : graph.weight(`${norm.name}.weight`, 'float32', [norm.size]),
    own && matrix.hasBias ? graph.weight(`${name}.bias`, 'float32', [outFeatures]) : '',
    addTo ?? '',
    adapters ? graph.input(rows, 'int64', [`${rows}.words`]) : '',
    base ?? '',
    graph.workingMemory,
  ]
  const [product, work] = graph.nodes(linearOpType(inFeatures), inputs, { domain: OP_DOMAIN, outputs: 2 })
  graph.workingMemory = work!
  graph.describe(product!, 'float32', [...tokenSizes(matrix), gated ? outFeatures / 2 : outFeatures])
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
