/** `--device`: the processor, GPUs by number, or whatever works. Pure. */

export type DeviceChoice = { kind: 'cpu' } | { kind: 'auto' } | { kind: 'cuda'; deviceIds: number[] }

/** `cpu`, `auto`, `cuda`, `cuda:1`, `cuda:0,1`; throws an error whose message says what is allowed. */
export function parseDevice(text: string): DeviceChoice {
  if (text === 'cpu' || text === 'auto') {
    return { kind: text }
  }
  const match = /^cuda(?::(\d{1,2}(?:,\d{1,2})*))?$/.exec(text)
  if (match === null) {
    throw new Error('expected cpu, auto, cuda, cuda:N or cuda:N,M,…')
  }
  const deviceIds = (match[1] ?? '0').split(',').map(Number)
  if (new Set(deviceIds).size !== deviceIds.length) {
    throw new Error('names a GPU twice')
  }
  return { kind: 'cuda', deviceIds }
}

export type Dtype = 'f16' | 'bf16' | 'f32' | 'int8' | 'int4'

export type ChosenDevice =
  | { kind: 'cpu'; dtype: 'f32' | 'int8' | 'int4' }
  | { kind: 'cuda'; deviceIds: number[]; dtype: 'f16' | 'bf16' | 'int8' | 'int4' }

/**
 * `cuda`: why CUDA does not work here, or `undefined` where it does. A GPU that was asked for by name is never replaced by the
 * processor. `dtype`: absent, int8 on the processor and f16 on a GPU.
 */
export function chooseDevice(
  choice: DeviceChoice,
  dtype: Dtype | undefined,
  cuda: string | undefined,
): ChosenDevice & { line: string } {
  if (choice.kind === 'cuda' && cuda !== undefined) {
    throw new Error(`--device cuda: ${cuda}`)
  }
  if (choice.kind === 'cpu' || cuda !== undefined) {
    if (dtype === 'f16' || dtype === 'bf16') {
      const why = choice.kind === 'auto' ? `; CUDA does not work here: ${cuda}` : ''
      throw new Error(`--dtype ${dtype} is for GPUs; on the processor f32, int8 and int4 are served${why}`)
    }
    const line = choice.kind === 'auto' ? `device: cpu (no CUDA: ${cuda})` : 'device: cpu'
    return { kind: 'cpu', dtype: dtype ?? 'int8', line }
  }
  if (dtype === 'f32') {
    throw new Error('--dtype f32 is for the processor; on a GPU f16, bf16, int8 and int4 are served')
  }
  const deviceIds = choice.kind === 'cuda' ? choice.deviceIds : [0]
  return { kind: 'cuda', deviceIds, dtype: dtype ?? 'f16', line: `device: cuda:${deviceIds.join(',')}` }
}
