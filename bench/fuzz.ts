/**
 * Ten thousand bodies mutated from valid ones, over every route, through edge and node. Prints a row a route; exits 1 on any
 * 5xx, hang or malformed answer.
 *
 *   npx tsx bench/fuzz.ts [--count 10000] [--seed 1] [--concurrency 8]
 */

import { parseArgs } from 'node:util'
import { startFakeHub } from '../test/support/fake-hub.ts'
import { fuzz } from '../test/support/fuzz.ts'
import { startStack } from '../test/support/running-stack.ts'

const { values } = parseArgs({
  options: {
    count: { type: 'string', default: '10000' },
    seed: { type: 'string', default: '1' },
    concurrency: { type: 'string', default: '8' },
  },
})
// Names that mean the hub are asked there; nothing leaves this machine.
const hub = await startFakeHub()
const stack = await startStack(['--nodes', '1'], { HF_ENDPOINT: hub.url })
const { edgeUrl, tenantToken } = stack.dev
const headers = { authorization: `Bearer ${tenantToken}`, 'content-type': 'application/json' }
const startedAt = performance.now()
const report = await fuzz({
  count: Number(values.count),
  seed: Number(values.seed),
  concurrency: Number(values.concurrency),
  timeoutMs: 60_000,
  send: (path, body, signal) => fetch(edgeUrl + path, { method: 'POST', headers, body, signal }),
})
const seconds = (performance.now() - startedAt) / 1000
for (const [path, byStatus] of [...report.counts].sort()) {
  const statuses = [...byStatus].sort(([a], [b]) => a - b).map(([status, count]) => `${status}: ${count}`)
  console.log(`${path.padEnd(22)} ${statuses.join('  ')}`)
}
console.log(`${values.count} bodies in ${seconds.toFixed(0)} s, ${report.faults.length} faults`)
for (const { path, body, fault } of report.faults.slice(0, 20)) {
  console.log(`\n${path} ${body.slice(0, 300)}\n  ${fault}`)
}
await stack.stop()
await hub.close()
process.exitCode = report.faults.length > 0 ? 1 : 0
