/** The small inputs and the outputs of a run: arrays filled before it and read after it, and tensors over them by size. */

import { TOKEN_HEADER_WORDS, TOKEN_WORDS } from '../../ort/attention-kernel/attention-layout.ts'
import type { OrtBinding } from '../../ort/binding.ts'
import type { OrtEnvironment } from '../../ort/environment.ts'
import { ROW_HEADER_WORDS } from '../../ort/lora-kernel/kernel-layout.ts'
import { type ElementType, OrtTensor } from '../../ort/tensor.ts'
import type { GraphForm } from '../graph/graph-form.ts'
import {
  EMBEDDINGS,
  HEAD_SIZES,
  HIDDEN,
  HIDDEN_ROWS,
  LAST_POSITIONS,
  LOGIT_ROWS,
  LOGITS,
  LORA_HEAD_ROWS,
  LORA_ROWS,
  POSITION_IDS,
  STEP_TOKENS,
  TOTAL_POSITIONS,
} from '../graph/graph-names.ts'

export interface StepShape {
  /** First row of the arrays that takes part. */
  first: number
  rows: number
  /** A row. Where a step has several, all rows take part. */
  tokens: number
  /** How many tokens' hidden states and logits are wanted: the last ones of the step. */
  hidden: number
  logits: number
}

export interface StepSizes {
  hiddenSize: number
  vocabSize: number
  /** Most tokens of a step, and most of them whose logits are wanted. */
  tokens: number
  logits: number
  usesPositionIds: boolean
}

type StepArray = Float32Array | Int32Array | BigInt64Array

export class StepIo {
  readonly embeddings: Float32Array
  readonly hidden: Float32Array
  /** As the LoRA kernel reads them: tokens of the step, and tokens whose logits are wanted. */
  readonly loraRows: BigInt64Array
  readonly loraHeadRows: BigInt64Array
  readonly logits: Float32Array
  readonly #environment: OrtEnvironment
  readonly #sizes: StepSizes
  readonly #total = new Int32Array(1)
  readonly #totalTensor: OrtTensor
  readonly #indices: BigInt64Array
  readonly #lastPositions: Int32Array
  readonly #positionIds: BigInt64Array
  /** Header and tokens, as our kernels read them; the words' lower halves: nothing in them is negative. */
  readonly #stepTokens: BigInt64Array
  readonly #stepWords: Int32Array
  readonly #headSizes = new BigInt64Array(3)
  readonly #headWords = new Int32Array(this.#headSizes.buffer)
  /** By array, then by offset and shape. */
  readonly #tensors = new Map<StepArray, Map<string, OrtTensor>>()

  constructor(environment: OrtEnvironment, sizes: StepSizes) {
    const { hiddenSize, vocabSize, tokens, logits } = sizes
    this.#environment = environment
    this.#sizes = sizes
    this.embeddings = new Float32Array(tokens * hiddenSize)
    this.#lastPositions = new Int32Array(tokens)
    this.#positionIds = new BigInt64Array(tokens)
    this.#stepTokens = new BigInt64Array(TOKEN_HEADER_WORDS + TOKEN_WORDS * tokens)
    this.#stepWords = new Int32Array(this.#stepTokens.buffer)
    this.hidden = new Float32Array(tokens * hiddenSize)
    // One element more: a tensor of no logits needs an address too.
    this.logits = new Float32Array(logits * vocabSize + 1)
    this.loraRows = new BigInt64Array(ROW_HEADER_WORDS + tokens)
    this.loraHeadRows = new BigInt64Array(ROW_HEADER_WORDS + tokens)
    this.#indices = BigInt64Array.from({ length: tokens + 1 }, (_, i) => BigInt(i))
    this.#totalTensor = new OrtTensor(environment, 'int32', [], this.#total)
  }

  holds(tokens: number, logits: number): boolean {
    return tokens <= this.#sizes.tokens && logits <= this.#sizes.logits
  }

  /** Sizes of one that holds all that this one does, and these too. */
  most(tokens: number, logits: number): { tokens: number; logits: number } {
    return { tokens: Math.max(tokens, this.#sizes.tokens), logits: Math.max(logits, this.#sizes.logits) }
  }

  /** Token `i` of the step: its row of the KV cache, its position, and its row of the rotary tables. */
  setToken(i: number, kvRow: number, position: number, ropeRow: number): void {
    const word = 2 * (TOKEN_HEADER_WORDS + TOKEN_WORDS * i)
    this.#stepWords[word] = kvRow
    this.#stepWords[word + 2] = position
    this.#stepWords[word + 4] = ropeRow
    if (this.#sizes.usesPositionIds) {
      this.#positionIds[i] = BigInt(ropeRow)
    }
  }

  setLastPosition(row: number, position: number): void {
    this.#lastPositions[row] = position
  }

  /** Called before each run, in the order of their first rows; `totalPositions`: the most of any row, this step's included. */
  prepare({ first, rows, tokens, logits }: StepShape, totalPositions: number): void {
    this.#total[0] = totalPositions
    // A run's header stands before its first token: on the words of a token whose run is over.
    const word = 2 * TOKEN_WORDS * first * tokens
    writeHeader(this.#stepWords, word, rows, tokens)
    writeHeader(this.#headWords, 0, logits, 1)
  }

  bind(binding: OrtBinding, { first, rows, tokens, hidden, logits }: StepShape, { kv, tiled }: GraphForm): void {
    const count = rows * tokens
    const start = first * tokens
    const { hiddenSize, vocabSize } = this.#sizes
    binding.input(EMBEDDINGS, this.#tensor('float32', this.embeddings, start * hiddenSize, [rows, tokens, hiddenSize]))
    if (kv === undefined) {
      binding.input(TOTAL_POSITIONS, this.#totalTensor)
      binding.input(LAST_POSITIONS, this.#tensor('int32', this.#lastPositions, first, [rows]))
      if (this.#sizes.usesPositionIds) {
        binding.input(POSITION_IDS, this.#tensor('int64', this.#positionIds, start, [rows, tokens]))
      }
    }
    if (kv !== undefined || tiled) {
      const words = TOKEN_HEADER_WORDS + TOKEN_WORDS * count
      binding.input(STEP_TOKENS, this.#tensor('int64', this.#stepTokens, TOKEN_WORDS * start, [words]))
    }
    if (tiled) {
      binding.input(HEAD_SIZES, this.#tensor('int64', this.#headSizes, 0, [3]))
    }
    binding.input(HIDDEN_ROWS, this.#tensor('int64', this.#indices, count - hidden, [hidden]))
    binding.input(LOGIT_ROWS, this.#tensor('int64', this.#indices, hidden - logits, [logits, 1]))
    binding.output(HIDDEN, this.#tensor('float32', this.hidden, start * hiddenSize, [hidden, hiddenSize]))
    binding.output(LOGITS, this.#tensor('float32', this.logits, start * vocabSize, [logits, 1, vocabSize]))
  }

  /** For graphs with the LoRA kernel; `address`: by token, of its adapter's table, 0n for the base. */
  setLoraRows({ rows, tokens, logits }: StepShape, address: (token: number) => bigint): void {
    const count = rows * tokens
    writeHeader(new Int32Array(this.loraRows.buffer), 0, rows, tokens)
    writeHeader(new Int32Array(this.loraHeadRows.buffer), 0, logits, 1)
    for (let token = 0; token < count; token++) {
      this.loraRows[ROW_HEADER_WORDS + token] = address(token)
    }
    for (let i = 0; i < logits; i++) {
      this.loraHeadRows[ROW_HEADER_WORDS + i] = address(count - logits + i)
    }
  }

  bindLoraRows(binding: OrtBinding, { rows, tokens, logits }: StepShape, head: boolean): void {
    const words = ROW_HEADER_WORDS + rows * tokens
    binding.input(LORA_ROWS, this.#tensor('int64', this.loraRows, 0, [words]))
    if (head) {
      binding.input(LORA_HEAD_ROWS, this.#tensor('int64', this.loraHeadRows, 0, [ROW_HEADER_WORDS + logits]))
    }
  }

  dispose(): void {
    this.#totalTensor.dispose()
    for (const tensors of this.#tensors.values()) {
      for (const tensor of tensors.values()) {
        tensor.dispose()
      }
    }
    this.#tensors.clear()
  }

  #tensor(type: ElementType, data: StepArray, offset: number, shape: number[]): OrtTensor {
    let known = this.#tensors.get(data)
    if (known === undefined) {
      known = new Map()
      this.#tensors.set(data, known)
    }
    const key = `${offset}:${shape.join('x')}`
    let tensor = known.get(key)
    if (tensor === undefined) {
      tensor = new OrtTensor(this.#environment, type, shape, data.subarray(offset))
      known.set(key, tensor)
    }
    return tensor
  }
}

/** Count and dimensions, as the kernels read them: int64, by their lower halves. */
function writeHeader(words: Int32Array, at: number, rows: number, tokens: number): void {
  words[at] = rows * tokens
  words[at + 2] = rows
  words[at + 4] = tokens
}
