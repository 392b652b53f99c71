/**
 * The pickle inside torch's files, through an allow-list: it names tensors and storages, and nothing it says is executed.
 * A pickle is a program for a stack machine; here it may build dicts, tuples, numbers and strings, and describe tensors.
 */

import type { FloatDtype } from '../formats/float16.ts'
import { PickleFunction, type PickleNames, runPickle } from './pickle-machine.ts'
import { printable, WeightFileError } from './raw-tensor.ts'

/** A state dict of 20,000 tensors has about 3 MB. */
export const MAX_PICKLE_BYTES = 16 * 1024 * 1024

/** A run of elements in the file; tensors are windows on it. */
export interface TorchStorage {
  key: string
  /** `undefined`: untyped storage (torch ≥ 2), whose tensors say their dtype. */
  dtype: StorageDtype | undefined
  /** Elements; of untyped storage: bytes. */
  size: number
}

/** A dtype that is no float is kept by name: such a tensor may stand in a file, but not in an adapter. */
export type StorageDtype = FloatDtype | { other: string; bytes: number }

export interface TorchTensor {
  storage: TorchStorage
  dtype: StorageDtype
  /** In elements, as the strides. */
  offset: number
  shape: number[]
  strides: number[]
}

const STORAGES: Record<string, StorageDtype> = {
  DoubleStorage: 'F64',
  FloatStorage: 'F32',
  HalfStorage: 'F16',
  BFloat16Storage: 'BF16',
  LongStorage: { other: 'I64', bytes: 8 },
  IntStorage: { other: 'I32', bytes: 4 },
  ShortStorage: { other: 'I16', bytes: 2 },
  CharStorage: { other: 'I8', bytes: 1 },
  ByteStorage: { other: 'U8', bytes: 1 },
  BoolStorage: { other: 'BOOL', bytes: 1 },
}

const DTYPES: Record<string, StorageDtype> = {
  float64: 'F64',
  float32: 'F32',
  float16: 'F16',
  bfloat16: 'BF16',
  float8_e4m3fn: 'F8_E4M3',
  float8_e5m2: 'F8_E5M2',
  int64: { other: 'I64', bytes: 8 },
  int32: { other: 'I32', bytes: 4 },
  uint8: { other: 'U8', bytes: 1 },
  bool: { other: 'BOOL', bytes: 1 },
}

/** Marks what this file made, so that a value made by the pickle can't pass for it. */
const made = new WeakSet<object>()

class StorageType {
  readonly dtype: StorageDtype | undefined
  constructor(dtype: StorageDtype | undefined) {
    this.dtype = dtype
  }
}

class DtypeName {
  readonly dtype: StorageDtype
  constructor(dtype: StorageDtype) {
    this.dtype = dtype
  }
}

/** A pickle and where it ends. */
export interface Pickled<T> {
  value: T
  end: number
}

/** The state dict: name → tensor. Everything else that the pickle builds is passed over or refused. */
export function parseStateDict(bytes: Uint8Array, start = 0): Pickled<Map<string, TorchTensor>> {
  const { value, end } = parsePickle(bytes, start)
  if (!(value instanceof Map)) {
    throw new WeightFileError('the pickle holds no state dict')
  }
  const tensors = new Map<string, TorchTensor>()
  for (const [name, tensor] of value as Map<unknown, unknown>) {
    if (typeof name !== 'string') {
      throw new WeightFileError('the state dict has a key that is no string')
    }
    if (!isTensor(tensor)) {
      throw new WeightFileError(`'${printable(name)}' in the state dict is no tensor`)
    }
    tensors.set(name, tensor)
  }
  return { value: tensors, end }
}

/** Any pickle of plain values and tensors. */
export function parsePickle(bytes: Uint8Array, start = 0): Pickled<unknown> {
  return runPickle(bytes, start, TORCH_NAMES)
}

const TORCH_NAMES: PickleNames = { global: resolveGlobal, persistent: toStorage }

/** Functions check the arguments that the pickle gives them themselves. */
function resolveGlobal(module: unknown, name: unknown): unknown {
  if (typeof module !== 'string' || typeof name !== 'string') {
    // Not spelt out: sixty bytes can make a tuple of tuples whose text would fill any memory.
    throw new WeightFileError('refused pickle global whose name is no string')
  }
  const path = `${module}.${name}`
  switch (path) {
    case 'torch._utils._rebuild_tensor_v2':
      return new PickleFunction((args) => rebuildTensor(args, undefined))
    case 'torch._utils._rebuild_tensor_v3':
      return new PickleFunction((args) => rebuildTensor(args, args[6]))
    case 'torch._utils._rebuild_parameter':
      return new PickleFunction(([data]) => data)
    case 'torch.Size':
      return new PickleFunction(([sizes]) => sizes)
    case 'collections.OrderedDict':
      return new PickleFunction((args) => {
        if (args.length > 0) {
          throw new WeightFileError('an OrderedDict made from a list is refused')
        }
        return new Map<unknown, unknown>()
      })
    case 'torch.storage.UntypedStorage':
      return new StorageType(undefined)
  }
  if (module === 'torch') {
    if (Object.hasOwn(STORAGES, name)) {
      return new StorageType(STORAGES[name])
    }
    if (Object.hasOwn(DTYPES, name)) {
      return new DtypeName(DTYPES[name]!)
    }
  }
  throw new WeightFileError(`refused pickle global ${printable(path)}`)
}

/** `('storage', type, key, location, size)`, in legacy files with a view (None) behind. */
function toStorage(id: unknown): TorchStorage {
  if (!Array.isArray(id) || id[0] !== 'storage' || !(id[1] instanceof StorageType) || typeof id[2] !== 'string') {
    throw new WeightFileError('a persistent id in the pickle names no storage')
  }
  if (!isSize(id[4]) || (id[5] !== null && id[5] !== undefined)) {
    throw new WeightFileError(`storage '${printable(id[2])}' has no size, or is a view of another`)
  }
  const storage: TorchStorage = { key: id[2], dtype: id[1].dtype, size: id[4] }
  made.add(storage)
  return storage
}

/** `(storage, offset, size, stride, requires_grad, backward_hooks[, dtype, metadata])` */
function rebuildTensor(args: readonly unknown[], dtypeArgument: unknown): TorchTensor {
  const [storage, offset, shape, strides] = args
  if (
    !isStorage(storage) ||
    !isSize(offset) ||
    !isSizes(shape) ||
    !isSizes(strides) ||
    shape.length !== strides.length
  ) {
    throw new WeightFileError('a tensor in the pickle is described by malformed numbers')
  }
  const dtype = dtypeArgument instanceof DtypeName ? dtypeArgument.dtype : storage.dtype
  if (dtype === undefined) {
    throw new WeightFileError('a tensor over untyped storage has no dtype that is known')
  }
  const tensor: TorchTensor = { storage, dtype, offset, shape: [...shape], strides: [...strides] }
  made.add(tensor)
  return tensor
}

function isTensor(value: unknown): value is TorchTensor {
  return typeof value === 'object' && value !== null && made.has(value) && 'strides' in value
}

function isStorage(value: unknown): value is TorchStorage {
  return typeof value === 'object' && value !== null && made.has(value) && 'key' in value
}

function isSize(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.length <= 16 && value.every(isSize)
}
