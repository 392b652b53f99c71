/** Writes an ONNX graph node by node. Values are named; large weights are declared here and handed over beside the model. */

import { create, toBinary } from '@bufbuild/protobuf'
import {
  AttributeProto_AttributeType,
  AttributeProtoSchema,
  GraphProtoSchema,
  ModelProtoSchema,
  NodeProtoSchema,
  OperatorSetIdProtoSchema,
  StringStringEntryProtoSchema,
  TensorProto_DataLocation,
  TensorProtoSchema,
  TensorShapeProto_DimensionSchema,
  TensorShapeProtoSchema,
  TypeProto_TensorSchema,
  TypeProtoSchema,
  ValueInfoProtoSchema,
} from 'onnx-buf'
import { halfBits } from '../../formats/to-float16.ts'
import { EXTERNAL_DATA_FILE } from '../../ort/library.ts'
import { ELEMENT_TYPES, type ElementType } from '../../ort/tensor.ts'
import { bfloatBits } from '../device/narrow.ts'

/** ONNX Runtime's own operators. */
export const MICROSOFT = 'com.microsoft'
/** Operators whose kernels are the node's own: `LoraDelta`, gpu-node/ort/lora-kernel. */
export const RINGLET = 'ringlet'

export type GraphFloats = 'float32' | 'float16' | 'bfloat16'
type Attribute = number | string | readonly number[] | { float: number }
/** A named size may differ from run to run. */
export type Dimension = number | string

export interface NodeOptions {
  domain?: string
  /** Integers as numbers, floats as `{ float }`. */
  attributes?: Readonly<Record<string, Attribute | undefined>>
  outputs?: number
}

export class GraphWriter {
  readonly #floats: GraphFloats
  readonly #opset: number
  readonly #graph = create(GraphProtoSchema, { name: 'decoder' })
  readonly #declared = new Set<string>()
  #values = 0
  /** What the last operator left that nothing reads; the next of its kind takes it, so that it is freed. */
  workingMemory = ''

  /** `opset`: of ONNX's own operators. `floats`: what everything that is written as float32 becomes, but for `float32Output`. */
  constructor(floats: GraphFloats = 'float32', opset = 21) {
    this.#floats = floats
    this.#opset = opset
  }

  input(name: string, type: ElementType, shape: readonly Dimension[]): string {
    if (!this.#declared.has(name)) {
      this.#declared.add(name)
      this.#graph.input.push(valueInfo(name, this.#typeOf(type), shape))
    }
    return name
  }

  /** Makes `value`, which no node reads, an output under a name of its own. */
  output(name: string, value: string, type: ElementType, shape: readonly Dimension[]): void {
    const writer = this.#graph.node.find((node) => node.output.includes(value))
    if (writer === undefined || this.#graph.node.some((node) => node.input.includes(value))) {
      throw new TypeError(`'${value}' cannot become the output '${name}': no node writes it, or some node reads it`)
    }
    writer.output[writer.output.indexOf(value)] = name
    this.declareOutput(name, type, shape)
  }

  /** An output that a node wrote under this name itself. */
  declareOutput(name: string, type: ElementType, shape: readonly Dimension[]): void {
    this.#graph.output.push(valueInfo(name, this.#typeOf(type), shape))
  }

  /** Makes `value` an output in float32, whatever the graph's floats are. */
  float32Output(name: string, value: string, shape: readonly Dimension[]): void {
    this.nodes('Cast', [value], { attributes: { to: ELEMENT_TYPES.float32 } }, [name])
    this.#graph.output.push(valueInfo(name, 'float32', shape))
  }

  /** An initializer whose data the session gets through `SessionOptions.initializers`. */
  weight(name: string, type: ElementType, shape: readonly number[]): string {
    if (!this.#declared.has(name)) {
      this.#declared.add(name)
      const place = create(StringStringEntryProtoSchema, { key: 'location', value: EXTERNAL_DATA_FILE })
      this.#graph.initializer.push(
        create(TensorProtoSchema, {
          name,
          dataType: ELEMENT_TYPES[this.#typeOf(type)],
          dims: shape.map(BigInt),
          dataLocation: TensorProto_DataLocation.EXTERNAL,
          externalData: [place],
        }),
      )
    }
    return name
  }

  /** A small constant inside the model. */
  int64(values: readonly number[], scalar = false): string {
    const name = `const.i64.${scalar ? 's' : 'v'}.${values.join('_')}`
    if (!this.#declared.has(name)) {
      this.#declared.add(name)
      const dims = scalar ? [] : [BigInt(values.length)]
      this.#graph.initializer.push(
        create(TensorProtoSchema, { name, dataType: ELEMENT_TYPES.int64, dims, int64Data: values.map(BigInt) }),
      )
    }
    return name
  }

  float(value: number): string {
    const name = `const.f32.${value}`
    if (!this.#declared.has(name)) {
      this.#declared.add(name)
      this.#graph.initializer.push(
        this.#floats === 'float32'
          ? create(TensorProtoSchema, { name, dataType: ELEMENT_TYPES.float32, dims: [], floatData: [value] })
          : create(TensorProtoSchema, {
              name,
              dataType: ELEMENT_TYPES[this.#floats],
              dims: [],
              int32Data: [narrowBits(value, this.#floats)],
            }),
      )
    }
    return name
  }

  /** An operator with one output. An empty name is an input left out. */
  node(operator: string, inputs: readonly string[], options: NodeOptions = {}): string {
    const [value] = this.nodes(operator, inputs, { ...options, outputs: 1 })
    return value!
  }

  /** An operator with several outputs, named in order; `names` overrules, and '' leaves an output out. */
  nodes(
    operator: string,
    inputs: readonly string[],
    options: NodeOptions,
    names: readonly (string | undefined)[] = [],
  ): string[] {
    const outputs = Array.from({ length: options.outputs ?? 1 }, (_, i) => names[i] ?? `v${this.#values++}`)
    const attribute = Object.entries(options.attributes ?? {}).flatMap(([name, value]) =>
      value === undefined ? [] : [attributeProto(name, value)],
    )
    this.#graph.node.push(
      create(NodeProtoSchema, {
        opType: operator,
        name: `${operator}.${this.#graph.node.length}`,
        domain: options.domain ?? '',
        input: [...inputs],
        output: outputs,
        attribute,
      }),
    )
    return outputs
  }

  /** What ONNX Runtime cannot infer: the shape that an operator of our own gives `value`. */
  describe(value: string, type: ElementType, shape: readonly Dimension[]): void {
    this.#graph.valueInfo.push(valueInfo(value, this.#typeOf(type), shape))
  }

  toModel(): Uint8Array {
    const opsets = [
      ['', BigInt(this.#opset)],
      [MICROSOFT, 1n],
      [RINGLET, 1n],
    ] as const
    const model = create(ModelProtoSchema, {
      irVersion: 10n,
      producerName: 'ringlet',
      graph: this.#graph,
      opsetImport: opsets.map(([domain, version]) => create(OperatorSetIdProtoSchema, { domain, version })),
    })
    return toBinary(ModelProtoSchema, model)
  }

  #typeOf(type: ElementType): ElementType {
    return type === 'float32' ? this.#floats : type
  }
}

/** Bits of the nearest number of sixteen bits. */
function narrowBits(value: number, floats: 'float16' | 'bfloat16'): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer)[0]!
  return floats === 'float16' ? halfBits(bits) : bfloatBits(bits)
}

function valueInfo(name: string, type: ElementType, shape: readonly Dimension[]) {
  const dim = shape.map((size) =>
    create(TensorShapeProto_DimensionSchema, {
      value: typeof size === 'number' ? { case: 'dimValue', value: BigInt(size) } : { case: 'dimParam', value: size },
    }),
  )
  const tensor = create(TypeProto_TensorSchema, {
    elemType: ELEMENT_TYPES[type],
    shape: create(TensorShapeProtoSchema, { dim }),
  })
  return create(ValueInfoProtoSchema, {
    name,
    type: create(TypeProtoSchema, { value: { case: 'tensorType', value: tensor } }),
  })
}

function attributeProto(name: string, value: Attribute) {
  if (typeof value === 'number') {
    return create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.INT, i: BigInt(value) })
  }
  if (typeof value === 'string') {
    const s = new TextEncoder().encode(value)
    return create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.STRING, s })
  }
  if ('float' in value) {
    return create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.FLOAT, f: value.float })
  }
  return create(AttributeProtoSchema, { name, type: AttributeProto_AttributeType.INTS, ints: value.map(BigInt) })
}
