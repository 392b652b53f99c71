/** torch.save since 1.6: a zip of `<name>/data.pkl` and one stored entry a storage, `<name>/data/<key>`. */

import { type Entry, fromBuffer, type ZipFile } from 'yauzl'
import { printable, WeightFileError } from './raw-tensor.ts'
import { MAX_PICKLE_BYTES, parseStateDict, type TorchTensor } from './torch-pickle.ts'
import { storageBytes } from './torch-tensor.ts'

export interface TorchFile {
  tensors: Map<string, TorchTensor>
  /** Bytes of a tensor's storage, a window on the file. */
  storage(tensor: TorchTensor): Uint8Array
}

/** "PK\3\4" */
export function isZip(file: Uint8Array): boolean {
  return file[0] === 0x50 && file[1] === 0x4b && file[2] === 3 && file[3] === 4
}

export async function openTorchZip(file: Uint8Array, maxTensors: number): Promise<TorchFile> {
  const entries = await readEntries(file, maxTensors)
  const pickles = [...entries.keys()].filter((name) => name.endsWith('/data.pkl') || name === 'data.pkl')
  const pickleName = pickles[0]
  if (pickleName === undefined || pickles.length > 1) {
    throw new WeightFileError(`the zip has ${pickles.length} entries named data.pkl; a torch file has one`)
  }
  const prefix = pickleName.slice(0, -'data.pkl'.length)
  const order = entries.get(`${prefix}byteorder`)
  if (order !== undefined && new TextDecoder().decode(order.slice()).trim() !== 'little') {
    throw new WeightFileError('the file was written on a big-endian machine')
  }
  const pickle = entries.get(pickleName)!
  if (pickle.byteLength > MAX_PICKLE_BYTES) {
    throw new WeightFileError(`data.pkl has ${pickle.byteLength} bytes; the limit is ${MAX_PICKLE_BYTES}`)
  }
  // A copy out of shared memory: TextDecoder refuses shared memory.
  const { value: tensors } = parseStateDict(pickle.slice())
  return {
    tensors,
    storage: (tensor) => {
      const { key } = tensor.storage
      const bytes = entries.get(`${prefix}data/${key}`)
      if (bytes === undefined) {
        throw new WeightFileError(`the zip has no entry for storage '${printable(key)}'`)
      }
      if (bytes.byteLength !== storageBytes(tensor)) {
        const said = storageBytes(tensor)
        throw new WeightFileError(`storage '${printable(key)}' has ${bytes.byteLength} bytes; its pickle says ${said}`)
      }
      return bytes
    },
  }
}

/** torch stores without compression, so an entry is a window on the file: nothing is inflated. */
async function readEntries(file: Uint8Array, maxTensors: number): Promise<Map<string, Uint8Array>> {
  // yauzl wants a Buffer; this one shares the file's memory.
  const buffer = Buffer.from(file.buffer, file.byteOffset, file.byteLength)
  const zip = await new Promise<ZipFile>((resolve, reject) => {
    fromBuffer(buffer, { lazyEntries: true, decodeStrings: true, validateEntrySizes: true }, (error, opened) =>
      error === null ? resolve(opened) : reject(unreadable(error)),
    )
  })
  if (zip.entryCount > maxTensors + 100) {
    throw new WeightFileError(`the zip has ${zip.entryCount} entries; the limit is ${maxTensors + 100}`)
  }
  const entries = new Map<string, Uint8Array>()
  await new Promise<void>((resolve, reject) => {
    zip.on('error', (error: Error) => reject(unreadable(error)))
    zip.on('end', () => resolve())
    zip.on('entry', (entry: Entry) => {
      try {
        entries.set(entry.fileName, entryBytes(file, entry))
        zip.readEntry()
      } catch (error) {
        reject(error as Error)
      }
    })
    zip.readEntry()
  })
  return entries
}

/** Local header (APPNOTE 4.3.7): 30 bytes, then name and extra field, whose lengths stand at 26 and 28. */
function entryBytes(file: Uint8Array, entry: Entry): Uint8Array {
  const name = printable(entry.fileName)
  if (entry.compressionMethod !== 0 || entry.compressedSize !== entry.uncompressedSize) {
    throw new WeightFileError(`zip entry '${name}' is compressed; torch's files are not`)
  }
  const header = entry.relativeOffsetOfLocalHeader
  if (header < 0 || header + 30 > file.byteLength) {
    throw new WeightFileError(`zip entry '${name}' starts at byte ${header} of ${file.byteLength}`)
  }
  const view = new DataView(file.buffer, file.byteOffset + header, 30)
  if (view.getUint32(0, true) !== 0x04034b50) {
    throw new WeightFileError(`zip entry '${name}' has no local header at byte ${header}`)
  }
  const begin = header + 30 + view.getUint16(26, true) + view.getUint16(28, true)
  const end = begin + entry.uncompressedSize
  if (end > file.byteLength) {
    throw new WeightFileError(`zip entry '${name}' ends at byte ${end} of ${file.byteLength}`)
  }
  return file.subarray(begin, end)
}

function unreadable(error: Error): WeightFileError {
  return new WeightFileError(`the zip can't be read: ${printable(error.message)}`)
}
