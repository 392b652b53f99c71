// How fast memory is read by as many threads as a step uses: a matrix far larger than any cache times a vector.

import { GraphWriter, MICROSOFT } from '../gpu-node/model/graph/graph-writer.ts'
import { OrtBinding } from '../gpu-node/ort/binding.ts'
import { OrtEnvironment } from '../gpu-node/ort/environment.ts'
import { OrtSession } from '../gpu-node/ort/session.ts'
import { OrtTensor } from '../gpu-node/ort/tensor.ts'

const ROWS = 4096
const COLUMNS = 16_384

/** GB/s, the best of several tries: a memory floor must not profit from a busy moment. */
export function readBandwidth(threads: number, tries = 15): number {
  const environment = new OrtEnvironment(threads)
  const graph = new GraphWriter()
  const weight = new Float32Array(ROWS * COLUMNS).fill(1)
  const inputs = [graph.input('x', 'float32', [1, ROWS]), graph.input('w', 'float32', [ROWS, COLUMNS])]
  graph.output('y', graph.node('FusedMatMul', inputs, { domain: MICROSOFT }), 'float32', [1, COLUMNS])
  const session = new OrtSession(environment, { model: graph.toModel() })
  const binding = new OrtBinding(environment, session)
  binding.input('x', new OrtTensor(environment, 'float32', [1, ROWS], new Float32Array(ROWS).fill(1)))
  binding.input('w', new OrtTensor(environment, 'float32', [ROWS, COLUMNS], weight))
  binding.output('y', new OrtTensor(environment, 'float32', [1, COLUMNS], new Float32Array(COLUMNS)))
  let best = Number.POSITIVE_INFINITY
  for (let i = 0; i < tries; i++) {
    const start = performance.now()
    binding.run()
    best = Math.min(best, performance.now() - start)
  }
  binding.dispose()
  session.dispose()
  return weight.byteLength / best / 1e6
}
