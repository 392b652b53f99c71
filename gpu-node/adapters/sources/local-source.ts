/** Adapters in directories of this machine, only below the operator's roots: neither `..` nor symbolic links lead out of them. */

import { createReadStream } from 'node:fs'
import { realpath, stat } from 'node:fs/promises'
import { isAbsolute, join, relative, resolve as resolvePath, sep } from 'node:path'
import type { AdapterRef } from '../../../shared/adapter-ref.ts'
import { fileVersion } from '../file-version.ts'
import { CONFIG_FILE, WEIGHT_FILES } from '../weight-file.ts'
import {
  type AdapterSourceReader,
  chooseFiles,
  notFound,
  type ResolvedAdapter,
  type SourceFile,
} from './adapter-source.ts'

export function createLocalSource(roots: readonly string[]): AdapterSourceReader {
  return {
    isExact: () => false,
    resolve: async (ref) => {
      for (const root of roots) {
        const found = await resolveBelow(ref, root)
        if (found !== undefined) {
          return found
        }
      }
      // The same answer for "does not exist" and "outside": a name must not probe the file system.
      throw notFound(ref)
    },
  }
}

async function resolveBelow(ref: AdapterRef, root: string): Promise<ResolvedAdapter | undefined> {
  const realRoot = await realPath(root)
  const directory = realRoot && (await realPath(isAbsolute(ref.id) ? ref.id : resolvePath(realRoot, ref.id)))
  if (directory === undefined || !isBelow(directory, realRoot!)) {
    return undefined
  }
  const names = [CONFIG_FILE, ...WEIGHT_FILES]
  const files = await Promise.all(names.map((name) => localFile(directory, name, realRoot!)))
  const found = files.filter((file) => file !== undefined)
  if (found.length === 0) {
    return undefined
  }
  const chosen = chooseFiles(ref, found)
  return {
    ref,
    contentKey: JSON.stringify(['local', directory, chosen.map((file) => [file.name, file.version])]),
    files: chosen,
    directory,
    // Names may lead elsewhere by the time they are opened; what was looked at is inside.
    versions: Object.fromEntries(chosen.map((file) => [file.name, file.version])),
  }
}

async function localFile(
  directory: string,
  name: string,
  root: string,
): Promise<(SourceFile & { version: string }) | undefined> {
  const path = await realPath(join(directory, name))
  if (path === undefined || !isBelow(path, root)) {
    return undefined
  }
  const info = await stat(path, { bigint: true })
  if (!info.isFile()) {
    return undefined
  }
  return {
    name,
    bytes: Number(info.size),
    checks: {},
    version: fileVersion(info),
    read: (start, end, signal) => readBytes(path, start, end, signal),
  }
}

async function* readBytes(path: string, start: number, end: number, signal: AbortSignal): AsyncIterable<Uint8Array> {
  if (end > start) {
    yield* createReadStream(path, { start, end: end - 1, signal }) as AsyncIterable<Uint8Array>
  }
}

/** `undefined`: nothing there, or not to be reached. */
async function realPath(path: string): Promise<string | undefined> {
  return realpath(path).catch(() => undefined)
}

/** The root itself is not below itself. */
function isBelow(path: string, root: string): boolean {
  const step = relative(root, path)
  return step !== '' && step !== '..' && !step.startsWith(`..${sep}`) && !isAbsolute(step)
}
