/** A GPU's parity with the reference, decode table and LoRA ratios, written to one JSON file: run it through bench/gpu.sh. */

import { writeFile } from 'node:fs/promises'
import { deviceBandwidth } from './bandwidth.ts'
import { measureShape, type ShapeReport } from './decode-table.ts'
import { findDevice } from './open.ts'
import { measureParity } from './parity.ts'
import { readSettings } from './settings.ts'

async function main(): Promise<void> {
  const settings = readSettings(process.argv.slice(2))
  const device = await findDevice(settings)
  const { name, totalBytes } = device.limit
  console.log(`${name}, weights in ${settings.dtype}`)
  const parity = await measureParity(settings, device)
  for (const { model, worstRelative, tolerance, tokensAgreed, tokensWanted, ok } of parity) {
    const figures = `worst logit ${worstRelative.toExponential(1)} (≤ ${tolerance}), tokens ${tokensAgreed}/${tokensWanted}`
    console.log(`parity ${model}: ${ok ? 'ok' : 'FAILED'}, ${figures}`)
  }
  const gigabytesPerSecond = deviceBandwidth(settings, device)
  console.log(`memory is read at ${gigabytesPerSecond.toFixed(0)} GB/s`)
  const shapes: ShapeReport[] = []
  for (const { name: shapeName, shape } of settings.shapes) {
    const report = await measureShape(settings, device, shapeName, shape, gigabytesPerSecond)
    shapes.push(report)
    printShape(report)
    // After each shape: a later one that fails leaves what is known.
    await save()
  }
  async function save(): Promise<void> {
    const { out, dtype, rounds, rank, slots, lengths, graphs } = settings
    const about = { device: name, totalBytes, node: process.version, dtype, rounds, rank, slots, lengths, graphs }
    await writeFile(out, `${JSON.stringify({ about, parity, gigabytesPerSecond, shapes }, null, 2)}\n`)
  }
  console.log(`written: ${settings.out}`)
  process.exitCode = parity.every(({ ok }) => ok) ? 0 : 4
}

function printShape({ shape, plan, notices, steps, ratios }: ShapeReport): void {
  console.log(`\n${shape}: ${plan}`)
  for (const notice of notices) {
    console.log(notice)
  }
  for (const { batch, adapters, timing, tokensPerSecond } of steps) {
    const ms = `${timing.medianMs.toFixed(2)} ms`.padStart(12)
    console.log(
      `batch ${String(batch).padStart(3)}  adapters ${adapters.padEnd(5)}${ms}  ${tokensPerSecond.toFixed(0)}/s`,
    )
  }
  for (const [what, { value, wanted }] of Object.entries(ratios)) {
    console.log(`${what}: ${value.toFixed(2)} (wanted ${wanted})`)
  }
}

main().catch((error: unknown) => {
  console.error(error instanceof Error ? error.message : String(error))
  process.exitCode = 1
})
