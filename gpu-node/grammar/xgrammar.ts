/**
 * Loads xgrammar into this thread. Its package is a UMD file marked as an ES module, so neither `import` nor `require` takes
 * it. What it writes to the console is kept here: its FATAL lines are the only explanation of an abort, and hold the
 * caller's grammar, which belongs in no log.
 */

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import vm from 'node:vm'
import type * as Xgrammar from '@mlc-ai/web-xgrammar'

export type XgrammarModule = typeof Xgrammar

export interface LoadedXgrammar {
  xgrammar: XgrammarModule
  /** Bytes of its WASM memory, which only grows. */
  heapBytes(): number
  /** Runs `work`; an abort becomes an `XgrammarAbort` with xgrammar's own explanation. */
  guard<T>(work: () => Promise<T>): Promise<T>
}

/** xgrammar has aborted or thrown: its state cannot be trusted any more. */
export class XgrammarAbort extends Error {
  override readonly name = 'XgrammarAbort'
}

/** What is used of WebAssembly's JavaScript API; Node's types leave it to the DOM's. */
interface Wasm {
  Memory: new (descriptor: { initial: number }) => WasmMemory
  instantiate(source: unknown, imports: unknown): Promise<WasmInstance | { instance: WasmInstance }>
}

interface WasmMemory {
  readonly buffer: ArrayBuffer
  grow: (pages: number) => number
}

interface WasmInstance {
  exports: Readonly<Record<string, unknown>>
}

const WASM: Wasm = Reflect.get(globalThis, 'WebAssembly')
const MAX_EXPLANATION = 400
const PAGE_BYTES = 65_536

/** `maxHeapBytes`: an allocation beyond fails inside xgrammar, which then aborts. */
export function loadXgrammar(maxHeapBytes: number): LoadedXgrammar {
  const require = createRequire(import.meta.url)
  const file = require.resolve('@mlc-ai/web-xgrammar')
  const lines: string[] = []
  const say = (...parts: unknown[]): void => {
    lines.push(parts.join(' '))
    lines.splice(0, lines.length - 8)
  }
  const quiet = { log: say, warn: say, error: say, info: say, debug: say }
  let memory: WasmMemory | undefined
  const wasm = limitedWasm(maxHeapBytes, (found) => {
    memory = found
  })
  const module = { exports: {} as XgrammarModule }
  const parameters = ['exports', 'require', 'module', '__filename', '__dirname', 'console', 'WebAssembly']
  silenceLoaderWarning()
  const run = vm.compileFunction(readFileSync(file, 'utf8'), parameters, {
    filename: file,
    // It calls `import('module')`.
    importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
  })
  run.call(module.exports, module.exports, createRequire(file), module, file, path.dirname(file), quiet, wasm)
  return {
    xgrammar: module.exports,
    heapBytes: () => memory?.buffer.byteLength ?? 0,
    guard: async (work) => {
      lines.length = 0
      try {
        return await work()
      } catch (cause) {
        throw new XgrammarAbort(explanation(lines) ?? 'it cannot be compiled', { cause })
      }
    },
  }
}

/** Node calls the loader that xgrammar's import needs experimental, on stderr, once a thread. */
function silenceLoaderWarning(): void {
  const emitWarning = process.emitWarning.bind(process)
  process.emitWarning = (warning: string | Error, ...rest: unknown[]) => {
    if (!String(warning).includes('USE_MAIN_CONTEXT_DEFAULT_LOADER')) {
      Reflect.apply(emitWarning, process, [warning, ...rest])
    }
  }
}

/** Emscripten's glue grows the exported memory through its `grow`; refusing there is an out-of-memory to xgrammar. */
function limitedWasm(maxBytes: number, onMemory: (memory: WasmMemory) => void): Wasm {
  const limit = (memory: WasmMemory): void => {
    const grow = memory.grow.bind(memory)
    memory.grow = (pages) => {
      if (memory.buffer.byteLength + pages * PAGE_BYTES > maxBytes) {
        throw new RangeError(`xgrammar's memory is limited to ${maxBytes} bytes`)
      }
      return grow(pages)
    }
    onMemory(memory)
  }
  const instantiate: Wasm['instantiate'] = async (source, imports) => {
    const result = await WASM.instantiate(source, imports)
    const { exports } = 'instance' in result ? result.instance : result
    for (const value of Object.values(exports)) {
      if (value instanceof WASM.Memory) {
        limit(value)
      }
    }
    return result
  }
  return Object.create(WASM, { instantiate: { value: instantiate } })
}

/** `[FATAL] /path/grammar_parser.cc:552: EBNF parser error at …` → what stands after the source position. */
function explanation(lines: readonly string[]): string | undefined {
  const fatal = lines.findLast((line) => line.startsWith('[FATAL]'))
  return fatal?.replace(/^\[FATAL\] \S+:\d+: /, '').slice(0, MAX_EXPLANATION)
}
