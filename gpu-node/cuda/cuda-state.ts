/** Can this machine run a CUDA node? Provider files, libraries and the GPU, in one line when not. */

import path from 'node:path'
import {
  type CudaMajor,
  type GpuMemory,
  type MissingLibrary,
  missingLibraries,
  missingProviderFiles,
  ORT_FILE,
  readGpuMemory,
} from '../ort/cuda-libraries.ts'
import { ortLibraryFile } from '../ort/library.ts'
import { completeFolder, readInstalled } from './provider-folder.ts'

export type CudaState =
  | { kind: 'ready'; libraryFile: string; cuda: CudaMajor; gpus: GpuMemory[] }
  | { kind: 'missing'; why: string }

export interface CudaProbe {
  missing(cuda: CudaMajor, folder: string): MissingLibrary[]
  memory(deviceId: number, cuda: CudaMajor): GpuMemory
}

const HERE: CudaProbe = { missing: missingLibraries, memory: readGpuMemory }

/** `folder`: what `npm run setup:cuda` filled, or one with the provider's files, which gets what else it needs. */
export async function probeCuda(
  folder: string,
  deviceIds: readonly number[],
  probe: CudaProbe = HERE,
): Promise<CudaState> {
  // Where it cannot be written it stays as it is, and the next line tells what it lacks.
  await completeFolder({ folder, ortLibrary: ortLibraryFile() }).catch(() => {})
  const files = missingProviderFiles(folder)
  if (files.length > 0) {
    return { kind: 'missing', why: `'${folder}' has no ${files.join(', ')}: run npm run setup:cuda` }
  }
  const cuda = await readInstalled(folder)
  const missing = probe.missing(cuda, folder).filter(({ library }) => library.optional !== true)
  if (missing.length > 0) {
    return { kind: 'missing', why: describeMissing(missing) }
  }
  try {
    const gpus = deviceIds.map((deviceId) => probe.memory(deviceId, cuda))
    return { kind: 'ready', libraryFile: path.join(folder, ORT_FILE), cuda, gpus }
  } catch (error) {
    return { kind: 'missing', why: error instanceof Error ? error.message : String(error) }
  }
}

/** One line: what is missing, and from where it comes. */
export function describeMissing(missing: readonly MissingLibrary[]): string {
  const sources = new Map<string, string[]>()
  for (const { library } of missing) {
    sources.set(library.from, [...(sources.get(library.from) ?? []), library.files.join(' or ')])
  }
  return [...sources].map(([from, files]) => `${files.join(', ')} cannot be loaded: install ${from}`).join('; ')
}
