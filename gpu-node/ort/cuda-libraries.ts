/** The shared libraries that ONNX Runtime's CUDA provider needs on a machine, checked by loading them; and its GPUs' memory. */

import { existsSync, readdirSync } from 'node:fs'
import path from 'node:path'
import koffi from 'koffi'

export type CudaMajor = 12 | 13

/** The oldest of each. */
const DRIVERS: Record<CudaMajor, number> = { 12: 525, 13: 580 }

export interface NeededLibrary {
  /** File names, any of which will do. */
  files: readonly string[]
  /** What brings it. */
  from: string
  /** None of Ringlet's graphs needs it; ONNX Runtime takes it where it is. */
  optional?: boolean
}

export function neededLibraries(cuda: CudaMajor): NeededLibrary[] {
  const toolkit = `the CUDA ${cuda} runtime libraries (image nvidia/cuda:${cuda}.*-cudnn-runtime, or NVIDIA's packages)`
  return [
    { files: ['libcuda.so.1'], from: `NVIDIA's driver, ${DRIVERS[cuda]} or later` },
    { files: [`libcudart.so.${cuda}`], from: toolkit },
    { files: [`libcublas.so.${cuda}`], from: toolkit },
    { files: [`libcublasLt.so.${cuda}`], from: toolkit },
    { files: ['libcurand.so.10'], from: toolkit },
    {
      files: ['libcudnn.so.9'],
      from: `cuDNN 9 (image …-cudnn-runtime, or package cudnn9-cuda-${cuda})`,
      optional: true,
    },
  ]
}

export interface MissingLibrary {
  library: NeededLibrary
  /** What the loader said, of the last file tried. */
  why: string
}

export type Load = (file: string) => unknown

/** koffi unloads what nobody holds, and the provider would then load it again from wherever. */
const held: unknown[] = []

function loadHere(file: string): unknown {
  const library = koffi.load(file, { lazy: true, global: true })
  held.push(library)
  return library
}

/**
 * Loaded once, a library is found by its name whoever asks for it later: also one in `folder`, beside the provider, or where
 * NVIDIA's installers put it without telling the loader.
 */
export function missingLibraries(cuda: CudaMajor, folder?: string, load: Load = loadHere): MissingLibrary[] {
  const folders = [...(folder === undefined ? [] : [folder]), ...toolkitFolders(cuda)]
  return neededLibraries(cuda).flatMap((library) => {
    let why = ''
    const places = library.files.flatMap((file) => {
      const elsewhere = folders.map((it) => path.join(it, file)).filter((place) => existsSync(place))
      return [file, ...elsewhere]
    })
    for (const place of places) {
      try {
        load(place)
        loadParts(place, load)
        return []
      } catch (error) {
        why = error instanceof Error ? error.message : String(error)
      }
    }
    return [{ library, why }]
  })
}

function toolkitFolders(cuda: CudaMajor): string[] {
  const roots = existsSync('/usr/local')
    ? readdirSync('/usr/local').filter((name) => name === 'cuda' || name.startsWith(`cuda-${cuda}`))
    : []
  const toolkits = roots.flatMap((root) => ['lib64', 'targets/x86_64-linux/lib'].map((it) => `${root}/${it}`))
  // The last is where containers are given the driver.
  return [...toolkits, 'nvidia/lib64'].map((it) => path.join('/usr/local', it))
}

/** cuDNN loads its parts by name when it first needs them: from a folder that the loader does not know they are loaded now. */
function loadParts(place: string, load: Load): void {
  if (!path.isAbsolute(place) || !path.basename(place).startsWith('libcudnn')) {
    return
  }
  const folder = path.dirname(place)
  let left = readdirSync(folder).filter((name) => /^libcudnn_\w+\.so\.9$/.test(name))
  // They need each other: round by round, until none more loads.
  for (let loaded = true; loaded && left.length > 0; ) {
    const failed = left.filter((name) => !loads(path.join(folder, name), load))
    loaded = failed.length < left.length
    left = failed
  }
}

function loads(place: string, load: Load): boolean {
  try {
    load(place)
    return true
  } catch {
    return false
  }
}

/** ONNX Runtime looks for its providers in the folder from which it was loaded itself. */
export const PROVIDER_FILES = ['libonnxruntime_providers_cuda.so', 'libonnxruntime_providers_shared.so'] as const
export const ORT_FILE = 'libonnxruntime.so.1'

/** Files of a provider folder that are not there. */
export function missingProviderFiles(folder: string): string[] {
  return [...PROVIDER_FILES, ORT_FILE].filter((file) => !existsSync(path.join(folder, file)))
}

export interface GpuMemory {
  name: string
  totalBytes: number
  freeBytes: number
}

/** What a library's functions are called through: koffi's, or a test's. */
export type LoadFunctions = (file: string) => { func(declaration: string): (...args: never[]) => number }

const NO_DEVICE = 100

/** Of a GPU by its number; fails where there is none of that number, or the driver is too old. Needs the libraries above. */
export function readGpuMemory(deviceId: number, cuda: CudaMajor, load: LoadFunctions = loadFunctions): GpuMemory {
  const driver = load('libcuda.so.1')
  const call = (library: typeof driver, declaration: string, ...args: unknown[]): void => {
    const code = library.func(declaration)(...(args as never[]))
    if (code === NO_DEVICE) {
      throw new Error("NVIDIA's driver finds no GPU")
    }
    if (code !== 0) {
      throw new Error(`${/\w+(?=\()/.exec(declaration)?.[0]} failed with CUDA error ${code}`)
    }
  }
  call(driver, 'int cuInit(unsigned int flags)', 0)
  const version = new Int32Array(1)
  call(driver, 'int cuDriverGetVersion(void *version)', version)
  if (version[0]! < 1000 * cuda) {
    const has = `${Math.floor(version[0]! / 1000)}.${Math.floor((version[0]! % 1000) / 10)}`
    throw new Error(`NVIDIA's driver is for CUDA ${has}; CUDA ${cuda} needs ${DRIVERS[cuda]} or later`)
  }
  const count = new Int32Array(1)
  call(driver, 'int cuDeviceGetCount(void *count)', count)
  if (deviceId >= count[0]!) {
    throw new Error(`there is no GPU ${deviceId}; the driver shows ${count[0]}`)
  }
  const device = new Int32Array(1)
  call(driver, 'int cuDeviceGet(void *device, int ordinal)', device, deviceId)
  const name = Buffer.alloc(128)
  call(driver, 'int cuDeviceGetName(void *name, int length, int device)', name, 128, device[0]!)
  const runtime = load(`libcudart.so.${cuda}`)
  call(runtime, 'int cudaSetDevice(int device)', deviceId)
  const bytes = new BigUint64Array(2)
  call(runtime, 'int cudaMemGetInfo(void *free, void *total)', bytes.subarray(0, 1), bytes.subarray(1))
  return {
    name: name.toString('latin1', 0, name.indexOf(0)),
    freeBytes: Number(bytes[0]),
    totalBytes: Number(bytes[1]),
  }
}

function loadFunctions(file: string): ReturnType<LoadFunctions> {
  const library = koffi.load(file)
  held.push(library)
  return library
}
