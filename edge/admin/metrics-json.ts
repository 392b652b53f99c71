/**
 * Metrics as LoRAX's JSON: `{ "<metric>": { "type", "data": [{ "key", "value" }] } }`. LoRAX has one server, so here the nodes'
 * numbers are added up, and the `node` label is gone. Pure.
 */

import type { NodeExposition } from './fleet-metrics.ts'

export interface JsonMetric {
  type: string
  /** `key`: `sum`, `count` or nothing for a metric without labels, else the sample's name with its labels. */
  data: { key: string; value: number }[]
}

const SAMPLE = /^([^\s{]+)(\{[^}]*\})?\s+(\S+)/

export function metricsJson(parts: readonly NodeExposition[]): Record<string, JsonMetric> {
  const metrics = new Map<string, { type: string; values: Map<string, number> }>()
  for (const { text = '' } of parts) {
    let name = ''
    for (const line of text.split('\n')) {
      const heading = /^# TYPE (\S+) (\S+)/.exec(line)
      if (heading !== null) {
        name = heading[1]!
        metrics.set(name, metrics.get(name) ?? { type: heading[2]!, values: new Map() })
        continue
      }
      const sample = SAMPLE.exec(line)
      const metric = metrics.get(name)
      if (sample !== null && metric !== undefined && !line.startsWith('#')) {
        const key = keyOf(name, sample[1]!, sample[2] ?? '')
        metric.values.set(key, (metric.values.get(key) ?? 0) + Number(sample[3]))
      }
    }
  }
  return Object.fromEntries(
    [...metrics].map(([name, { type, values }]) => [
      name,
      { type, data: [...values].map(([key, value]) => ({ key, value })) },
    ]),
  )
}

function keyOf(metric: string, sample: string, labels: string): string {
  return labels === '' || labels === '{}' ? sample.slice(metric.length + 1) : sample + labels
}
