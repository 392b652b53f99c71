/**
 * Writes graphs whose runs may be captured. ONNX Runtime 1.29's CUDA kernels for Split and Concat take the addresses of parts of
 * several sizes, or of more than 32, from a table in host memory that is anybody's after the run: a replay of the captured copy
 * finds the addresses of whichever run came last (microsoft/onnxruntime#32121). Parts of one size go with the launch itself.
 */

import { GraphWriter, type NodeOptions } from '../graph/graph-writer.ts'

/** Parts whose addresses go with the launch. */
const MAX_PARTS = 32
/** Always with a table, or with one where no part of the graph tells the sizes. */
const NEVER = new Set(['Concat', 'ScatterND'])

export class CapturableWriter extends GraphWriter {
  /** By name. */
  readonly #integers = new Map<string, readonly number[]>()

  override int64(values: readonly number[], scalar = false): string {
    const name = super.int64(values, scalar)
    this.#integers.set(name, values)
    return name
  }

  override nodes(
    operator: string,
    inputs: readonly string[],
    options: NodeOptions,
    names: readonly (string | undefined)[] = [],
  ): string[] {
    if (NEVER.has(operator)) {
      throw new TypeError(`${operator} is not for runs that are captured`)
    }
    const sizes = operator === 'Split' ? this.#integers.get(inputs[1] ?? '') : undefined
    if (operator !== 'Split' || (sizes !== undefined && goWithTheLaunch(sizes))) {
      return super.nodes(operator, inputs, options, names)
    }
    if (sizes === undefined) {
      throw new TypeError('a Split without constant sizes is not for runs that are captured')
    }
    return this.#slices(inputs[0]!, sizes, Number(options.attributes?.axis ?? 0), names)
  }

  #slices(value: string, sizes: readonly number[], axis: number, names: readonly (string | undefined)[]): string[] {
    let start = 0
    return sizes.flatMap((size, i) => {
      const inputs = [value, this.int64([start]), this.int64([start + size]), this.int64([axis])]
      start += size
      return super.nodes('Slice', inputs, {}, [names[i]])
    })
  }
}

function goWithTheLaunch(sizes: readonly number[]): boolean {
  return sizes.length <= MAX_PARTS && sizes.every((size) => size === sizes[0])
}
