/**
 * The folder from which a CUDA node loads ONNX Runtime: its library beside the CUDA provider's. Written whole or not at all; links
 * to nothing, so that it may be taken to another machine.
 */

import { createHash } from 'node:crypto'
import { createReadStream, existsSync } from 'node:fs'
import { chmod, copyFile, mkdir, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { pipeline } from 'node:stream/promises'
import { createGunzip } from 'node:zlib'
import { type CudaMajor, ORT_FILE, PROVIDER_FILES } from '../ort/cuda-libraries.ts'
import { PROVIDER_ENTRIES, PROVIDER_PACKAGE } from './provider-package.ts'
import { extractTar } from './tar-extract.ts'

/** Tells which CUDA the folder's provider is for. */
const NOTE_FILE = 'provider.json'

export async function readInstalled(folder: string): Promise<CudaMajor> {
  try {
    const note = JSON.parse(await readFile(path.join(folder, NOTE_FILE), 'utf8')) as { cuda?: unknown }
    return note.cuda === 12 ? 12 : 13
  } catch {
    // A folder filled by hand.
    return 13
  }
}

/** Fails unless the file's bytes are those that `integrity` (`sha512-…`) names. */
export async function checkIntegrity(file: string, integrity: string): Promise<void> {
  const hash = createHash('sha512')
  await pipeline(createReadStream(file), hash)
  const found = `sha512-${hash.digest('base64')}`
  if (found !== integrity) {
    throw new Error(`'${file}' has ${found}; ${integrity} is expected: nothing of it is used`)
  }
}

export interface FillOptions {
  folder: string
  /** onnxruntime-node's library, of which the folder has a copy. */
  ortLibrary: string
}

/** CUDA 13, from the package's tarball. */
export async function fillFromTarball(
  tarball: string,
  { folder, ortLibrary }: FillOptions,
  { integrity, entries } = { integrity: PROVIDER_PACKAGE.integrity as string, entries: PROVIDER_ENTRIES },
): Promise<void> {
  await checkIntegrity(tarball, integrity)
  await fill(folder, ortLibrary, 13, async (into) => {
    const written: string[] = []
    await pipeline(createReadStream(tarball), createGunzip(), async (source) => {
      const names = await extractTar(source, (name) => {
        const file = entries.get(name)
        return file === undefined ? undefined : path.join(into, file)
      })
      written.push(...names)
    })
    const missing = [...entries.keys()].filter((name) => !written.includes(name))
    if (missing.length > 0) {
      throw new Error(`'${tarball}' holds no ${missing.join(', ')}`)
    }
  })
}

/** CUDA 12: the files that onnxruntime-node's installer put beside its own library. */
export async function fillFromBinding({ folder, ortLibrary }: FillOptions): Promise<void> {
  await fill(folder, ortLibrary, 12, async (into) => {
    for (const file of PROVIDER_FILES) {
      await copyFile(path.join(path.dirname(ortLibrary), file), path.join(into, file))
    }
  })
}

/** Puts ONNX Runtime's library into a folder that has only the provider's files, as somebody laid them there. */
export async function completeFolder({ folder, ortLibrary }: FillOptions): Promise<void> {
  const place = path.join(folder, ORT_FILE)
  if (existsSync(place) || !PROVIDER_FILES.every((file) => existsSync(path.join(folder, file)))) {
    return
  }
  const made = `${place}.${process.pid}`
  try {
    await copyFile(ortLibrary, made)
    await rename(made, place)
  } finally {
    await rm(made, { force: true })
  }
}

async function fill(
  folder: string,
  ortLibrary: string,
  cuda: CudaMajor,
  write: (into: string) => Promise<void>,
): Promise<void> {
  await mkdir(path.dirname(folder), { recursive: true })
  const made = await mkdtemp(`${folder}-`)
  try {
    await write(made)
    await copyFile(ortLibrary, path.join(made, ORT_FILE))
    await writeFile(
      path.join(made, NOTE_FILE),
      `${JSON.stringify({ cuda, onnxruntime: PROVIDER_PACKAGE.ortVersion })}\n`,
    )
    // The node may run as another user than who installs.
    await chmod(made, 0o755)
    await rm(folder, { recursive: true, force: true })
    await rename(made, folder)
  } catch (error) {
    await rm(made, { recursive: true, force: true })
    throw error
  }
}
