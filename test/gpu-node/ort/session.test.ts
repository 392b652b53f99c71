import { afterAll, describe, expect, test } from 'vitest'
import { GraphWriter, MICROSOFT } from '../../../gpu-node/model/graph/graph-writer.ts'
import { OrtBinding } from '../../../gpu-node/ort/binding.ts'
import { OrtEnvironment } from '../../../gpu-node/ort/environment.ts'
import { loadOrtLibrary, ortLibraryFile } from '../../../gpu-node/ort/library.ts'
import { OrtSession, PrepackedWeights } from '../../../gpu-node/ort/session.ts'
import { OrtTensor } from '../../../gpu-node/ort/tensor.ts'
import { RingletError } from '../../../shared/errors.ts'

const environment = new OrtEnvironment(2)
afterAll(() => environment.dispose())

/** `y = x·wᵀ + add`. */
function productModel(inputs: number, outputs: number, add: number): Uint8Array {
  const graph = new GraphWriter()
  const x = graph.input('x', 'float32', ['rows', inputs])
  const weight = graph.weight('w', 'float32', [outputs, inputs])
  const product = graph.node('FusedMatMul', [x, weight], { domain: MICROSOFT, attributes: { transB: 1 } })
  graph.output('y', graph.node('Add', [product, graph.float(add)]), 'float32', ['rows', outputs])
  return graph.toModel()
}

function errorOf(action: () => unknown): RingletError {
  try {
    action()
  } catch (error) {
    expect(error).toBeInstanceOf(RingletError)
    return error as RingletError
  }
  throw new Error('nothing was thrown')
}

describe('a session', () => {
  test('computes with shared weights, bound memory and new values without rebinding', () => {
    const weight = new OrtTensor(environment, 'float32', [2, 3], Float32Array.of(1, 2, 3, 4, 5, 6))
    const session = new OrtSession(environment, {
      model: productModel(3, 2, 10),
      initializers: new Map([['w', weight]]),
    })
    const binding = new OrtBinding(environment, session)
    const x = new Float32Array(new SharedArrayBuffer(12))
    const y = new Float32Array(2)
    binding.input('x', new OrtTensor(environment, 'float32', [1, 3], x))
    binding.output('y', new OrtTensor(environment, 'float32', [1, 2], y))
    x.set([1, 1, 1])
    binding.run()
    expect([...y]).toEqual([16, 25])
    x.set([2, 0, -1])
    binding.run()
    expect([...y]).toEqual([9, 12])
    binding.dispose()
    session.dispose()
  })

  test('several sessions keep one copy of the packed weights', () => {
    const size = 3000
    const data = new Float32Array(new SharedArrayBuffer(size * size * 4)).fill(0.5)
    const initializers = new Map([['w', new OrtTensor(environment, 'float32', [size, size], data)]])
    const prepacked = new PrepackedWeights(environment)
    const open = (add: number) =>
      new OrtSession(environment, { model: productModel(size, size, add), initializers, prepacked })
    const first = open(1)
    const before = process.memoryUsage.rss()
    const others = [2, 3, 4, 5].map(open)
    const grown = process.memoryUsage.rss() - before
    // Four copies would be 144 MB; packing works in a passing one.
    expect(grown).toBeLessThan(1.5 * data.byteLength)
    for (const session of [first, ...others]) {
      session.dispose()
    }
    prepacked.dispose()
  })

  test('says what is wrong with a model, and the environment goes on', () => {
    const error = errorOf(() => new OrtSession(environment, { model: Uint8Array.of(1, 2, 3) }))
    expect(error.code).toBe('engine_failed')
    expect(error.message).toContain('ONNX Runtime error')
    const graph = new GraphWriter()
    graph.output('y', graph.node('NoSuchOperator', [graph.input('x', 'float32', [1])]), 'float32', [1])
    expect(errorOf(() => new OrtSession(environment, { model: graph.toModel() })).message).toContain('NoSuchOperator')
  })

  test('refuses inputs of a wrong shape, and unknown names', () => {
    const weight = new OrtTensor(environment, 'float32', [2, 3], new Float32Array(6))
    const initializers = new Map([['w', weight]])
    const session = new OrtSession(environment, { model: productModel(3, 2, 0), initializers })
    const binding = new OrtBinding(environment, session)
    binding.input('x', new OrtTensor(environment, 'float32', [1, 4], new Float32Array(4)))
    binding.output('y', new OrtTensor(environment, 'float32', [1, 2], new Float32Array(2)))
    expect(errorOf(() => binding.run()).message).toMatch(/x|dimension/i)
    const other = new OrtTensor(environment, 'float32', [1], new Float32Array(1))
    expect(errorOf(() => binding.input('nothing', other)).code).toBe('engine_failed')
    binding.dispose()
    session.dispose()
  })

  test('what is disposed is not used again', () => {
    const session = new OrtSession(environment, {
      model: productModel(1, 1, 0),
      initializers: new Map([['w', new OrtTensor(environment, 'float32', [1, 1], new Float32Array(1))]]),
    })
    const binding = new OrtBinding(environment, session)
    binding.dispose()
    expect(errorOf(() => binding.run()).message).toContain('disposed binding')
    session.dispose()
    session.dispose()
    expect(errorOf(() => session.handle).message).toContain('disposed session')
  })
})

test('a tensor larger than its array is refused', () => {
  const error = errorOf(() => new OrtTensor(environment, 'float32', [2, 2], new Float32Array(3)))
  expect(error.message).toContain('[2, 2] float32 needs 16 bytes; its array has 12')
})

describe('the library', () => {
  test('is found by its name on every platform, and refused elsewhere', () => {
    expect(ortLibraryFile('linux', 'x64')).toMatch(/linux.x64.libonnxruntime\.so\.1$/)
    expect(ortLibraryFile('darwin', 'arm64')).toMatch(/darwin.arm64.libonnxruntime\.1.*\.dylib$/)
    expect(ortLibraryFile('win32', 'x64')).toMatch(/win32.x64.onnxruntime\.dll$/)
    expect(errorOf(() => ortLibraryFile('plan9', 'x64')).code).toBe('not_supported')
  })

  test('names the file that cannot be loaded', () => {
    expect(errorOf(() => loadOrtLibrary('/no/such/library.so')).message).toContain('/no/such/library.so')
  })
})
