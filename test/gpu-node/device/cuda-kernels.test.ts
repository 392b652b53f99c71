/** Every operator of the device's graphs has a CUDA kernel in halves: one that has none would run on the processor, with copies. */

import { join } from 'node:path'
import { fromBinary } from '@bufbuild/protobuf'
import { type ModelProto, ModelProtoSchema, type ValueInfoProto } from 'onnx-buf'
import { describe, expect, test } from 'vitest'
import { openCheckpoint } from '../../../gpu-node/model/checkpoint.ts'
import { CapturableWriter } from '../../../gpu-node/model/device/capturable-writer.ts'
import { DEVICE_OPSET, type DeviceForm } from '../../../gpu-node/model/device/device-form.ts'
import { buildDeviceGraph } from '../../../gpu-node/model/device/device-graph.ts'
import { shortlistShape } from '../../../gpu-node/model/device/device-logits.ts'
import { deviceModel } from '../../../gpu-node/model/device/open-device-runner.ts'
import { buildShortlistGraph, buildSpanGraph } from '../../../gpu-node/model/device/shortlist-graph.ts'
import { ELEMENT_TYPES } from '../../../gpu-node/ort/tensor.ts'

/**
 * From ONNX Runtime's docs/OperatorKernels.md, CUDA: a kernel serves an operator where it is registered for the very version in
 * which the operator last changed (up to opset 20), or for a closed range that holds it.
 */
const CUDA_KERNELS = new Set(
  `Add Cast Div Exp Gather GatherElements Gelu Greater LayerNormalization MatMul Mul ReduceSum Relu Reshape ScatterElements
  SimplifiedLayerNormalization Slice Softmax Split Sub Sum Tanh TopK Where com.microsoft.FusedMatMul
  com.microsoft.GroupQueryAttention com.microsoft.MatMulNBits com.microsoft.QuickGelu
  com.microsoft.SkipLayerNormalization com.microsoft.SkipSimplifiedLayerNormalization`.split(/\s+/),
)

/**
 * Splits and joins of parts of several sizes, or of more than 32, take their addresses from host memory that a captured run does
 * not own: when it is replayed they are another run's.
 */
function expectCapturable({ graph }: ModelProto): void {
  const sizes = new Map(graph?.initializer.map(({ name, int64Data }) => [name, int64Data.map(Number)]))
  for (const { opType, input } of graph?.node ?? []) {
    expect(['Concat', 'ScatterND']).not.toContain(opType)
    if (opType === 'Split') {
      const parts = sizes.get(input[1]!)!
      expect(new Set(parts).size).toBe(1)
      expect(parts.length).toBeLessThanOrEqual(32)
    }
  }
}

const forms: DeviceForm[] = (['none', 'gather', 'window'] as const).flatMap((lora) =>
  [false, true].map((all) => ({ lora, extras: all, head: all, embedding: all })),
)

test.each([
  { changed: false, masked: false },
  { changed: true, masked: true },
])('the sampler’s graphs, changed $changed, masked $masked', (form) => {
  // A whole number of groups and spans, and one that leaves a rest at every round.
  for (const vocabSize of [128_256, 151_937]) {
    const shape = shortlistShape(vocabSize)
    for (const graph of [buildShortlistGraph(shape, form), buildSpanGraph(shape)]) {
      const proto = fromBinary(ModelProtoSchema, graph)
      const names = (proto.graph?.node ?? []).map(({ opType }) => opType)
      expectCapturable(proto)
      expect([...new Set(names)].filter((operator) => !CUDA_KERNELS.has(operator))).toEqual([])
      // CUDA reduces with cuDNN, which a machine may lack.
      expect(names.filter((name) => name.startsWith('Reduce') || name.startsWith('Arg'))).toEqual([])
    }
  }
})

describe.each(['llama', 'gemma2', 'gpt2', 'phi3-longrope', 'qwen3-moe'])('%s', async (name) => {
  const checkpoint = await openCheckpoint(join(import.meta.dirname, '../../fixtures/goldens', name, 'base'))
  await checkpoint.close()

  test.each(['f16', 'bf16', 'int8', 'int4'] as const)('in %s, in every form', (format) => {
    const model = deviceModel(checkpoint.decoder, format, { slots: 4, maxRank: 8 })
    for (const form of forms) {
      const proto = fromBinary(ModelProtoSchema, buildDeviceGraph(model, form))
      const nodes = proto.graph?.node ?? []
      expectCapturable(proto)
      const names = nodes.map(({ domain, opType }) => (domain === '' ? opType : `${domain}.${opType}`))
      expect([...new Set(names)].filter((operator) => !CUDA_KERNELS.has(operator))).toEqual([])
      expect(proto.opsetImport.find(({ domain }) => domain === '')?.version).toBe(BigInt(DEVICE_OPSET))
      // Only what leaves the graph for the host is float32.
      const isFloat32 = ({ type }: ValueInfoProto): boolean =>
        type?.value.case === 'tensorType' && type.value.value.elemType === ELEMENT_TYPES.float32
      const floats = (values: ValueInfoProto[]) => values.filter(isFloat32).map((value) => value.name)
      expect(floats(proto.graph?.input ?? [])).toEqual([])
      expect(floats(proto.graph?.output ?? []).sort()).toEqual(['hidden', 'logits'])
      expect(proto.graph?.initializer.filter(({ dataType }) => dataType === ELEMENT_TYPES.float32)).toEqual([])
    }
  })
})

test('parts that a captured run may not split are cut out one by one; what it may not join is refused', () => {
  const graph = new CapturableWriter('float32', DEVICE_OPSET)
  const value = graph.input('x', 'float32', [1, 99])
  const split = (sizes: number[]) =>
    graph.nodes('Split', [value, graph.int64(sizes)], { attributes: { axis: -1 }, outputs: sizes.length })
  expect(split([33, 33, 33])).toHaveLength(3)
  expect(split([50, 25, 24])).toHaveLength(3)
  expect(split(new Array(99).fill(1))).toHaveLength(99)
  const { graph: written } = fromBinary(ModelProtoSchema, graph.toModel())
  const operators = (written?.node ?? []).map(({ opType }) => opType)
  expect(operators).toEqual(['Split', ...new Array(102).fill('Slice')])
  expect((written?.node ?? [])[2]?.input).toEqual(['x', 'const.i64.v.50', 'const.i64.v.75', 'const.i64.v.-1'])
  expect(() => graph.node('Concat', [value, value], { attributes: { axis: 0 } })).toThrow('captured')
  expect(() => graph.nodes('Split', [value, 'sizes'], { outputs: 2 })).toThrow('captured')
})
