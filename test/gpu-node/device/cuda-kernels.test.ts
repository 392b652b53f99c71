/** Every operator of the device's graphs has a CUDA kernel in halves: one that has none would run on the processor, with copies. */

import { join } from 'node:path'
import { fromBinary } from '@bufbuild/protobuf'
import { ModelProtoSchema, type ValueInfoProto } from 'onnx-buf'
import { describe, expect, test } from 'vitest'
import { openCheckpoint } from '../../../gpu-node/model/checkpoint.ts'
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
  `Add Cast Concat Div Exp Gather GatherElements Gelu Greater LayerNormalization MatMul Mul ReduceSum Relu Reshape ScatterElements ScatterND
  SimplifiedLayerNormalization Slice Softmax Split Sub Sum Tanh TopK Where com.microsoft.FusedMatMul
  com.microsoft.GroupQueryAttention com.microsoft.MatMulNBits com.microsoft.QuickGelu
  com.microsoft.SkipLayerNormalization com.microsoft.SkipSimplifiedLayerNormalization`.split(/\s+/),
)

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
