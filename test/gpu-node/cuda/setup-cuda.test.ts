import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { lstat, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { gzipSync } from 'node:zlib'
import fc from 'fast-check'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { describeLoaded, readSettings } from '../../../gpu-node/cli/setup-cuda.ts'
import { type CudaProbe, describeMissing, probeCuda } from '../../../gpu-node/cuda/cuda-state.ts'
import { fillFromTarball, readInstalled } from '../../../gpu-node/cuda/provider-folder.ts'
import { extractTar } from '../../../gpu-node/cuda/tar-extract.ts'
import { GraphWriter } from '../../../gpu-node/model/graph/graph-writer.ts'
import { missingLibraries, neededLibraries, readGpuMemory } from '../../../gpu-node/ort/cuda-libraries.ts'
import { OrtEnvironment } from '../../../gpu-node/ort/environment.ts'
import { ortLibraryFile } from '../../../gpu-node/ort/library.ts'
import { OrtSession } from '../../../gpu-node/ort/session.ts'

let work: string
beforeAll(async () => {
  work = await mkdtemp(join(tmpdir(), 'ringlet-cuda-'))
})
afterAll(() => rm(work, { recursive: true }))

/** A tar archive as POSIX describes it, by the slow and obvious way. */
function tar(files: Record<string, Uint8Array>): Buffer {
  const blocks = Object.entries(files).flatMap(([name, bytes]) => {
    const header = Buffer.alloc(512)
    header.write(name, 0)
    header.write('0000644\0', 100)
    header.write(`${bytes.length.toString(8).padStart(11, '0')}\0`, 124)
    header.write('        ', 148)
    header.write('0', 156)
    header.write('ustar\0', 257)
    const sum = header.reduce((total, byte) => total + byte, 0)
    header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
    return [header, Buffer.from(bytes), Buffer.alloc((512 - (bytes.length % 512)) % 512)]
  })
  return Buffer.concat([...blocks, Buffer.alloc(1024)])
}

describe('an archive', () => {
  test('gives the files asked for, in whatever pieces it arrives', async () => {
    const files = {
      'package/a': Buffer.from('first'),
      'package/b': Buffer.alloc(1500, 7),
      'package/empty': Buffer.alloc(0),
    }
    const archive = tar(files)
    await fc.assert(
      fc.asyncProperty(fc.array(fc.integer({ min: 1, max: 700 }), { minLength: 1 }), async (sizes) => {
        const pieces: Buffer[] = []
        for (let at = 0, i = 0; at < archive.length; i++) {
          const size = sizes[i % sizes.length]!
          pieces.push(archive.subarray(at, at + size))
          at += size
        }
        const target = (name: string) => (name === 'package/a' ? undefined : join(work, name.replace('/', '-')))
        expect(await extractTar(Readable.from(pieces), target)).toEqual(['package/b', 'package/empty'])
        expect(await readFile(join(work, 'package-b'))).toEqual(files['package/b'])
        expect(await readFile(join(work, 'package-empty'))).toHaveLength(0)
      }),
      { numRuns: 20 },
    )
    expect(existsSync(join(work, 'package-a'))).toBe(false)
  })

  test('that is cut off or damaged is refused', async () => {
    const archive = tar({ 'package/a': Buffer.alloc(700, 1) })
    const into = () => join(work, 'cut')
    await expect(extractTar(Readable.from([archive.subarray(0, 900)]), into)).rejects.toThrow('ends in the middle')
    archive[3] = 65
    await expect(extractTar(Readable.from([archive]), into)).rejects.toThrow('another checksum')
  })
})

describe('the provider folder', () => {
  const entries = new Map([['package/Plugins/x/libonnxruntime_providers_cuda.so', 'libonnxruntime_providers_cuda.so']])

  test('is filled from a tarball with the right bytes, beside ONNX Runtime itself: it may be moved', async () => {
    const tarball = join(work, 'good.tgz')
    const bytes = gzipSync(
      tar({
        'package/Plugins/x/libonnxruntime_providers_cuda.so': Buffer.from('elf'),
        'package/evil': Buffer.from('x'),
      }),
    )
    await writeFile(tarball, bytes)
    const integrity = `sha512-${createHash('sha512').update(bytes).digest('base64')}`
    const folder = join(work, 'ort')
    await fillFromTarball(tarball, { folder, ortLibrary: ortLibraryFile() }, { integrity, entries })
    expect((await readdir(folder)).sort()).toEqual([
      'libonnxruntime.so.1',
      'libonnxruntime_providers_cuda.so',
      'provider.json',
    ])
    expect((await lstat(join(folder, 'libonnxruntime.so.1'))).isFile()).toBe(true)
    expect(await readInstalled(folder)).toBe(13)
    expect((await stat(folder)).mode & 0o777).toBe(0o755)
  })

  test('gets ONNX Runtime where somebody laid only the provider’s files, or the link in it leads nowhere', async () => {
    const none: CudaProbe = { missing: () => [], memory: () => ({ name: 'GPU', totalBytes: 8, freeBytes: 4 }) }
    for (const broken of [false, true]) {
      const folder = await mkdtemp(join(work, 'by-hand-'))
      const library = join(folder, 'libonnxruntime.so.1')
      await writeFile(join(folder, 'libonnxruntime_providers_cuda.so'), '')
      expect((await probeCuda(folder, [0], none)).kind).toBe('missing')
      expect(existsSync(library)).toBe(false)
      await writeFile(join(folder, 'libonnxruntime_providers_shared.so'), '')
      if (broken) {
        await symlink('/nowhere/libonnxruntime.so.1', library)
      }
      expect(await probeCuda(folder, [0], none)).toMatchObject({ kind: 'ready', libraryFile: library })
      expect((await lstat(library)).size).toBe((await stat(ortLibraryFile())).size)
      expect(await readdir(folder)).toHaveLength(3)
    }
  })

  test('stays as it was when the tarball has other bytes', async () => {
    const folder = join(work, 'untouched')
    await writeFile(join(work, 'bad.tgz'), 'not what was published')
    const filling = fillFromTarball(join(work, 'bad.tgz'), { folder, ortLibrary: ortLibraryFile() })
    await expect(filling).rejects.toThrow(/sha512-FopIhNE.*is expected: nothing of it is used/)
    expect((await readdir(work)).filter((name) => name.startsWith('untouched'))).toEqual([])
  })
})

describe('what a machine lacks', () => {
  const none: CudaProbe = { missing: () => [], memory: () => ({ name: 'GPU', totalBytes: 8, freeBytes: 4 }) }

  test('is said in one line, with where it comes from', () => {
    const load = (file: string) => {
      if (file !== 'libcuda.so.1') {
        throw new Error(`no ${file}`)
      }
    }
    const missing = missingLibraries(13, undefined, load)
    expect(missing.map(({ library }) => library.files[0])).toEqual([
      'libcudart.so.13',
      'libcublas.so.13',
      'libcublasLt.so.13',
      'libcurand.so.10',
      'libcudnn.so.9',
    ])
    const line = describeMissing(missing)
    expect(line).not.toContain('\n')
    expect(line).toContain('libcublas.so.13')
    expect(line).toContain('cuDNN 9')
    // ONNX Runtime's CUDA provider 1.29 loads cuDNN when an operator asks for it, and none here does.
    expect(missing.filter(({ library }) => library.optional).map(({ library }) => library.files[0])).toEqual([
      'libcudnn.so.9',
    ])
    expect(describeLoaded([])).toBe('driver, CUDA libraries and cuDNN load')
    expect(describeLoaded(missing.slice(-1))).toMatch(
      /^driver and CUDA libraries load; libcudnn\.so\.9 .*no model here needs$/,
    )
    expect(neededLibraries(12).flatMap(({ files }) => files)).toContain('libcublasLt.so.12')
  })

  test('libraries that lie beside the provider are loaded from there, with cuDNN’s parts', async () => {
    const folder = join(work, 'beside')
    await mkdir(folder)
    const files = ['libcublas.so.13', 'libcudnn.so.9', 'libcudnn_ops.so.9', 'libcudnn_graph.so.9']
    for (const file of files) {
      await writeFile(join(folder, file), '')
    }
    const loaded: string[] = []
    const load = (file: string) => {
      // The loader's own path has none; parts want those before them.
      if (!file.startsWith(folder) || (file.includes('graph') && !loaded.some((name) => name.includes('ops')))) {
        throw new Error(`no ${file}`)
      }
      loaded.push(file)
    }
    const missing = missingLibraries(13, folder, load).map(({ library }) => library.files[0])
    expect(missing).toEqual(['libcuda.so.1', 'libcudart.so.13', 'libcublasLt.so.13', 'libcurand.so.10'])
    expect(loaded.sort()).toEqual(files.map((file) => join(folder, file)).sort())
  })

  test('provider files, libraries and GPU are looked for in this order', async () => {
    expect(await probeCuda(join(work, 'nothing'), [0], none)).toMatchObject({
      kind: 'missing',
      why: expect.stringContaining('setup:cuda'),
    })
    const folder = join(work, 'complete')
    await mkdir(folder)
    for (const file of [
      'libonnxruntime_providers_cuda.so',
      'libonnxruntime_providers_shared.so',
      'libonnxruntime.so.1',
    ]) {
      await writeFile(join(folder, file), '')
    }
    const ready = await probeCuda(folder, [0], none)
    expect(ready).toMatchObject({
      kind: 'ready',
      libraryFile: join(folder, 'libonnxruntime.so.1'),
      gpus: [{ totalBytes: 8 }],
    })
    const fails: CudaProbe = {
      ...none,
      memory: (id) => {
        throw new Error(`there is no GPU ${id}`)
      },
    }
    expect(await probeCuda(folder, [3], fails)).toEqual({ kind: 'missing', why: 'there is no GPU 3' })
  })

  test('a GPU is asked for its memory; a driver that is too old or finds none says so', () => {
    const machine = (driver: number, gpus: number) => (file: string) => ({
      func: (declaration: string) => {
        const calls: Record<string, (...args: never[]) => number> = {
          cuInit: () => (gpus === 0 ? 100 : 0),
          cuDriverGetVersion: (version: Int32Array) => version.fill(driver).length - 1,
          cuDeviceGetCount: (count: Int32Array) => count.fill(gpus).length - 1,
          cuDeviceGet: () => 0,
          cuDeviceGetName: (name: Buffer) => name.write('NVIDIA Test') * 0,
          cudaSetDevice: () => (file === 'libcudart.so.13' ? 0 : 1),
          cudaMemGetInfo: (free: BigUint64Array, total: BigUint64Array) => {
            free[0] = 5n * 2n ** 35n
            total[0] = 6n * 2n ** 35n
            return 0
          },
        }
        return calls[/\w+(?=\()/.exec(declaration)![0]]!
      },
    })
    expect(readGpuMemory(1, 13, machine(13_000, 2))).toEqual({
      name: 'NVIDIA Test',
      freeBytes: 5 * 2 ** 35,
      totalBytes: 6 * 2 ** 35,
    })
    expect(() => readGpuMemory(2, 13, machine(13_000, 2))).toThrow('there is no GPU 2; the driver shows 2')
    expect(() => readGpuMemory(0, 13, machine(13_000, 0))).toThrow("NVIDIA's driver finds no GPU")
    const old = "NVIDIA's driver is for CUDA 12.2; CUDA 13 needs 580 or later"
    expect(() => readGpuMemory(0, 13, machine(12_020, 1))).toThrow(old)
    expect(() => readGpuMemory(0, 12, machine(12_020, 1))).toThrow('cudaSetDevice failed with CUDA error 1')
  })

  test('a session on CUDA without the provider fails with ONNX Runtime’s reason, and the next one works', () => {
    const environment = new OrtEnvironment(1)
    const graph = new GraphWriter()
    graph.nodes('Identity', [graph.input('x', 'float32', [1])], {}, ['y'])
    graph.declareOutput('y', 'float32', [1])
    const model = graph.toModel()
    const cuda = { deviceId: 0, memoryLimit: 2 ** 20, graphs: false }
    expect(() => new OrtSession(environment, { model, cuda })).toThrow(/libonnxruntime_providers_shared\.so/)
    new OrtSession(environment, { model }).dispose()
    environment.dispose()
  })
})

test('the command’s options are checked', () => {
  expect(readSettings(['--cuda', '12', '--dir', '/x'])).toMatchObject({ cuda: 12, folder: '/x', check: false })
  expect(() => readSettings(['--cuda', '11'])).toThrow('--cuda is 12 or 13; given: 11')
  expect(() => readSettings(['--cuda', '12', '--tarball', 'a.tgz'])).toThrow(
    '--tarball holds the libraries for CUDA 13',
  )
})
