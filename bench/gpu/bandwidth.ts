// How fast the device's memory is: the better of a large matrix times a vector, and of a copy, whose bytes are read and written.

import { DeviceContext } from '../../gpu-node/model/device/device-context.ts'
import { GraphWriter, MICROSOFT } from '../../gpu-node/model/graph/graph-writer.ts'
import { OrtBinding } from '../../gpu-node/ort/binding.ts'
import { OrtEnvironment } from '../../gpu-node/ort/environment.ts'
import { type BenchDevice, targetOf } from './open.ts'
import type { GpuBenchSettings } from './settings.ts'

/** GB/s, the best of several tries: what is too low would make every floor easy. */
export function deviceBandwidth(settings: GpuBenchSettings, found: BenchDevice): number {
  const { threads, lengths } = settings
  const { libraryFile } = found
  const small = lengths[0] < 128
  // Long enough that starting the run counts for little.
  const rows = small ? 1024 : 65_536
  const columns = 16_384
  const bytes = rows * columns * 2
  const environment = new OrtEnvironment(threads, libraryFile)
  const limit = bytes + 2 ** 29
  const context = new DeviceContext(environment, targetOf(settings, found, limit, limit))
  try {
    const weight = context.allocate(bytes)
    const part = new Uint8Array(Math.min(bytes, 1 << 26))
    for (let at = 0; at < bytes; at += part.length) {
      context.upload(part.subarray(0, Math.min(part.length, bytes - at)), weight + BigInt(at))
    }
    const run = productWith(context, weight, rows, columns)
    const product = bestOf(() => run.binding.run())
    run.dispose()
    // One half onto the other.
    const width = 2 * columns
    const half = { width, rows: rows / 2, fromPitch: width, toPitch: width }
    const copy = bestOf(() => context.copy((stream) => stream.acrossRows(weight, weight + BigInt(bytes / 2), half)))
    return bytes / Math.min(product, copy) / 1e6
  } finally {
    context.dispose()
    environment.dispose()
  }
}

function productWith(context: DeviceContext, weight: bigint, rows: number, columns: number) {
  const graph = new GraphWriter('float16')
  const inputs = [graph.input('x', 'float32', [1, columns]), graph.input('w', 'float32', [rows, columns])]
  graph.nodes('FusedMatMul', inputs, { domain: MICROSOFT, attributes: { transB: 1 } }, ['y'])
  graph.declareOutput('y', 'float32', [1, rows])
  const session = context.session(graph.toModel())
  const binding = new OrtBinding(context.environment, session)
  const vector = context.allocate(columns * 2)
  context.upload(new Uint8Array(columns * 2), vector)
  binding.input('x', context.tensor('float16', [1, columns], vector))
  binding.input('w', context.tensor('float16', [rows, columns], weight))
  binding.output('y', context.tensor('float16', [1, rows], context.allocate(rows * 2)))
  const dispose = (): void => {
    binding.dispose()
    session.dispose()
  }
  return { binding, dispose }
}

/** Milliseconds. */
function bestOf(act: () => void): number {
  let best = Number.POSITIVE_INFINITY
  for (let i = 0; i < 20; i++) {
    const start = performance.now()
    act()
    best = Math.min(best, performance.now() - start)
  }
  return best
}
