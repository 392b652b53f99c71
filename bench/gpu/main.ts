/** A GPU's parity with the reference, decode table and LoRA ratios, written to one JSON file: run it through bench/gpu.sh. */

import { writeFile } from 'node:fs/promises'
import { deviceBandwidth } from './bandwidth.ts'
import { measureShape, type ShapeReport } from './decode-table.ts'
import { findDevice } from './open.ts'
import { measureParity, type ParityRow } from './parity.ts'
import { measureSampling, type SamplingParity } from './sampling.ts'
import { readSettings } from './settings.ts'

/** Exit status: 0 all well, 4 parity is off, 5 some part could not be measured. */
const PARITY_OFF = 4
const PART_FAILED = 5

async function main(): Promise<void> {
  const settings = readSettings(process.argv.slice(2))
  const device = await findDevice(settings)
  const { name, totalBytes } = device.limit
  const { out, dtype, rounds, rank, slots, lengths, graphs } = settings
  console.log(`${name}, weights in ${dtype}`)
  const about = { device: name, totalBytes, node: process.version, dtype, rounds, rank, slots, lengths, graphs }
  const parity: ParityRow[] = []
  const sampling: SamplingParity[] = []
  const shapes: ShapeReport[] = []
  const failed: { part: string; error: string }[] = []
  const report = { about, failed, parity, sampling, gigabytesPerSecond: undefined as number | undefined, shapes }
  /** A part that fails leaves the others; the file has what is known so far. */
  const attempt = async (part: string, measure: () => Promise<void> | void): Promise<void> => {
    try {
      await measure()
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error)
      failed.push({ part, error: why })
      console.log(`${part}: FAILED, ${why}`)
    }
    await writeFile(out, `${JSON.stringify(report, null, 2)}\n`)
  }
  for (const model of settings.goldens) {
    await attempt(`parity ${model}`, async () => {
      const row = await measureParity(settings, device, model)
      parity.push(row)
      const { worstRelative, tolerance, tokensAgreed, tokensWanted, ok } = row
      const figures = `worst logit ${worstRelative.toExponential(1)} (≤ ${tolerance}), tokens ${tokensAgreed}/${tokensWanted}`
      console.log(`parity ${model}: ${ok ? 'ok' : 'OFF'}, ${figures}`)
    })
  }
  await attempt('parity of sampling', () => {
    const row = measureSampling(settings, device)
    sampling.push(row)
    console.log(
      `parity of sampling: ${row.ok ? 'ok' : 'OFF'}, ${row.agreed}/${row.draws} draws, ${row.wholeRows} whole rows`,
    )
  })
  await attempt('bandwidth', () => {
    report.gigabytesPerSecond = deviceBandwidth(settings, device)
    console.log(`memory is read at ${report.gigabytesPerSecond.toFixed(0)} GB/s`)
  })
  for (const { name: shapeName, shape } of settings.shapes) {
    await attempt(`shape ${shapeName}`, async () => {
      const measured = await measureShape(settings, device, shapeName, shape, report.gigabytesPerSecond ?? Number.NaN)
      shapes.push(measured)
      printShape(measured)
    })
  }
  console.log(`written: ${out}`)
  const off = [...parity, ...sampling].some(({ ok }) => !ok)
  process.exitCode = failed.length > 0 ? PART_FAILED : off ? PARITY_OFF : 0
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
