/**
 * `npm run setup:cuda`: installs ONNX Runtime's CUDA provider for this machine and says in one line what else is missing.
 * Downloads are left to npm and to onnxruntime-node's own installer; what they bring is checked and unpacked here.
 */

import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { parseArgs, promisify } from 'node:util'
import { describeMissing } from '../cuda/cuda-state.ts'
import { fillFromBinding, fillFromTarball } from '../cuda/provider-folder.ts'
import { PROVIDER_PACKAGE } from '../cuda/provider-package.ts'
import { gibibytes } from '../model/runner/memory-plan.ts'
import {
  type CudaMajor,
  type MissingLibrary,
  missingLibraries,
  PROVIDER_FILES,
  readGpuMemory,
} from '../ort/cuda-libraries.ts'
import { externalDataFolder, ortLibraryFile } from '../ort/library.ts'

const USAGE = `npm run setup:cuda -- [options]
  --cuda 13|12      of the machine's driver and libraries (13)
  --dir DIR         where ONNX Runtime and its provider go (.ort)
  --tarball FILE    ${PROVIDER_PACKAGE.name}-${PROVIDER_PACKAGE.version}.tgz, for machines without the npm registry
  --check           install nothing; say what is missing`

const run = promisify(execFile)
const repository = path.resolve(import.meta.dirname, '../..')

interface Settings {
  cuda: CudaMajor
  folder: string
  tarball: string | undefined
  check: boolean
}

export function readSettings(argv: readonly string[]): Settings | 'help' {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      cuda: { type: 'string', default: '13' },
      dir: { type: 'string', default: path.join(repository, '.ort') },
      tarball: { type: 'string' },
      check: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  if (values.help) {
    return 'help'
  }
  if (values.cuda !== '12' && values.cuda !== '13') {
    throw new Error(`--cuda is 12 or 13; given: ${values.cuda}`)
  }
  if (values.cuda === '12' && values.tarball !== undefined) {
    throw new Error('--tarball holds the libraries for CUDA 13')
  }
  const cuda = values.cuda === '12' ? 12 : 13
  return { cuda, folder: path.resolve(values.dir), tarball: values.tarball, check: values.check }
}

async function install({ cuda, folder, tarball }: Settings): Promise<void> {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new Error(`the CUDA provider is built for linux x64; this is ${process.platform} ${process.arch}`)
  }
  const ortLibrary = ortLibraryFile()
  if (cuda === 12) {
    await runNugetInstaller(path.dirname(ortLibrary))
    await fillFromBinding({ folder, ortLibrary })
  } else if (tarball !== undefined) {
    await fillFromTarball(tarball, { folder, ortLibrary })
  } else {
    await fillFromRegistry(folder, ortLibrary)
  }
  console.log(`ONNX Runtime ${PROVIDER_PACKAGE.ortVersion} with its CUDA ${cuda} provider lies in ${folder}`)
}

async function fillFromRegistry(folder: string, ortLibrary: string): Promise<void> {
  const { name, version, bytes } = PROVIDER_PACKAGE
  console.log(`fetching ${name}@${version} (${Math.round(bytes / 1e6)} MB)`)
  const work = await mkdtemp(path.join(tmpdir(), 'ringlet-cuda-'))
  try {
    // The tarball alone: an installation would bring its dependencies, which nobody needs.
    await run('npm', ['pack', `${name}@${version}`, '--silent', '--ignore-scripts', '--pack-destination', work], {
      cwd: work,
    })
    await fillFromTarball(path.join(work, `${name}-${version}.tgz`), { folder, ortLibrary })
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

/**
 * Inside an npm script `ONNXRUNTIME_NODE_INSTALL=cuda12` exits with success and installs nothing: the installer takes the
 * project for its own. `true`, and none of npm's variables, make it install its one manifest, which is CUDA 12's.
 */
async function runNugetInstaller(binFolder: string): Promise<void> {
  const script = path.join(externalDataFolder(), 'script', 'install.js')
  const plain = Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name) && !/^ONNXRUNTIME_NODE/i.test(name))
  console.log("fetching the CUDA 12 provider from NuGet by onnxruntime-node's installer")
  const env = { ...Object.fromEntries(plain), ONNXRUNTIME_NODE_INSTALL: 'true' }
  await run(process.execPath, [script], { env }).catch((error: { stderr?: string; message: string }) => {
    const why = /^\w*Error: .*$/m.exec(error.stderr ?? '')?.[0] ?? error.message
    throw new Error(`onnxruntime-node's installer failed: ${why}`)
  })
  const missing = PROVIDER_FILES.filter((file) => !existsSync(path.join(binFolder, file)))
  if (missing.length > 0) {
    throw new Error(`onnxruntime-node's installer ended well, but ${binFolder} has no ${missing.join(', ')}`)
  }
}

/** `missing`: what is not needed. */
export function describeLoaded(missing: readonly MissingLibrary[]): string {
  return missing.length === 0
    ? 'driver, CUDA libraries and cuDNN load'
    : `driver and CUDA libraries load; ${describeMissing(missing)}, which no model here needs`
}

/** Exit status: 0 where nothing is missing, 3 where only the machine lacks something. */
async function main(): Promise<number> {
  const settings = readSettings(process.argv.slice(2))
  if (settings === 'help') {
    console.log(USAGE)
    return 0
  }
  if (!settings.check) {
    await install(settings)
  }
  const missing = missingLibraries(settings.cuda, settings.folder)
  const needed = missing.filter(({ library }) => library.optional !== true)
  if (needed.length > 0) {
    console.log(describeMissing(needed))
    return 3
  }
  try {
    const { name, totalBytes } = readGpuMemory(0, settings.cuda)
    console.log(`${describeLoaded(missing)}; GPU 0 is ${name} with ${gibibytes(totalBytes)}`)
    return 0
  } catch (error) {
    console.log(error instanceof Error ? error.message : String(error))
    return 3
  }
}

if (import.meta.filename === process.argv[1]) {
  main().then(
    (status) => {
      process.exitCode = status
    },
    (error: unknown) => {
      console.error(error instanceof Error ? error.message : String(error))
      process.exitCode = 1
    },
  )
}
