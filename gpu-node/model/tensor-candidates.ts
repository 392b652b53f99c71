/**
 * Under which names a tensor may be stored: its own; without the prefix of the model inside its class (GPT-2 as first published);
 * or as a part of all experts' matrices together, as transformers 5 keeps them in memory and may save them. Pure.
 */

export interface TensorCandidate {
  name: string
  /** Of the stored tensor. */
  shape: readonly number[] | undefined
  /** Which of the equal parts of the stored tensor it is, counted in elements of the wanted one. */
  part: number
}

const PREFIX = /^(transformer|model)\./
const EXPERT = /^(.+)\.(block_sparse_moe|mlp)\.experts\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$/
const ROUTER = /\.block_sparse_moe\.gate\.weight$/

/** `shape`: that of the wanted tensor; experts' `experts` many matrices are found only with it. */
export function tensorCandidates(name: string, shape?: readonly number[], experts?: number): TensorCandidate[] {
  const own = { name, shape, part: 0 }
  const bare = { name: name.replace(PREFIX, ''), shape, part: 0 }
  const router = ROUTER.test(name) ? [{ name: name.replace(ROUTER, '.mlp.gate.weight'), shape, part: 0 }] : []
  return [own, bare, ...router, ...fusedExperts(name, shape, experts)]
}

/** gate and up lie in `gate_up_proj` `[experts, 2·inner, hidden]`, down in `down_proj` `[experts, hidden, inner]`. */
function fusedExperts(name: string, shape: readonly number[] | undefined, experts?: number): TensorCandidate[] {
  const [, layer, block, index, matrix] = EXPERT.exec(name) ?? []
  const [rows, columns] = shape ?? []
  if (index === undefined || rows === undefined || columns === undefined || experts === undefined) {
    return []
  }
  const expert = Number(index)
  const isDown = matrix === 'down_proj' || matrix === 'w2'
  const isGate = matrix === 'gate_proj' || matrix === 'w1'
  return ['mlp', block].map((folder) =>
    isDown
      ? { name: `${layer}.${folder}.experts.down_proj`, shape: [experts, rows, columns], part: expert }
      : {
          name: `${layer}.${folder}.experts.gate_up_proj`,
          shape: [experts, 2 * rows, columns],
          part: 2 * expert + (isGate ? 0 : 1),
        },
  )
}

export function product(shape: readonly number[]): number {
  return shape.reduce((elements, size) => elements * size, 1)
}
