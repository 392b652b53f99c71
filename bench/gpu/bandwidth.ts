// How fast the device reads its memory: a large matrix times a vector.

import { DeviceContext } from '../../gpu-node/model/device/device-context.ts'
import { GraphWriter, MICROSOFT } from '../../gpu-node/model/graph/graph-writer.ts'
import { OrtBinding } from '../../gpu-node/ort/binding.ts'
import { OrtEnvironment } from '../../gpu-node/ort/environment.ts'
import { type BenchDevice, targetOf } from './open.ts'
import type { GpuBenchSettings } from './settings.ts'

/** GB/s, the best of several tries. */
export function deviceBandwidth(settings: GpuBenchSettings, found: BenchDevice): number {
  const { threads, lengths } = settings
  const { libraryFile } = found
  const small = lengths[0] < 128
  const rows = small ? 1024 : 16_384
  const columns = 16_384
  const bytes = rows * columns * 2
  const environment = new OrtEnvironment(threads, libraryFile)
  const limit = bytes + 2 ** 29
  const target = targetOf(settings, found, limit, limit)
  const context = new DeviceContext(environment, target)
  const graph = new GraphWriter('float16')
  const inputs = [graph.input('x', 'float32', [1, columns]), graph.input('w', 'float32', [rows, columns])]
  graph.nodes('FusedMatMul', inputs, { domain: MICROSOFT, attributes: { transB: 1 } }, ['y'])
  graph.declareOutput('y', 'float32', [1, rows])
  const session = context.session(graph.toModel())
  const binding = new OrtBinding(environment, session)
  const weight = context.allocate(bytes)
  const part = new Uint8Array(Math.min(bytes, 1 << 26))
  for (let at = 0; at < bytes; at += part.length) {
    context.upload(part.subarray(0, Math.min(part.length, bytes - at)), weight + BigInt(at))
  }
  const vector = context.allocate(columns * 2)
  context.upload(new Uint8Array(columns * 2), vector)
  binding.input('x', context.tensor('float16', [1, columns], vector))
  binding.input('w', context.tensor('float16', [rows, columns], weight))
  binding.output('y', context.tensor('float16', [1, rows], context.allocate(rows * 2)))
  let best = Number.POSITIVE_INFINITY
  for (let i = 0; i < 20; i++) {
    const start = performance.now()
    binding.run()
    best = Math.min(best, performance.now() - start)
  }
  binding.dispose()
  session.dispose()
  context.dispose()
  environment.dispose()
  return bytes / best / 1e6
}
