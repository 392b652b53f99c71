/** The nodes' Prometheus metrics as one exposition: each sample with its node's id, each family's heading once. Pure. */

export interface NodeExposition {
  nodeId: string
  /** `undefined`: the node did not answer. */
  text: string | undefined
}

/** https://prometheus.io/docs/instrumenting/exposition_formats/ */
export const EXPOSITION_TYPE = 'text/plain; version=0.0.4; charset=utf-8'

interface Family {
  headings: string[]
  samples: string[]
}

export function mergeExpositions(parts: readonly NodeExposition[]): string {
  const families = new Map<string, Family>()
  families.set('ringlet_node_up', {
    headings: ['# HELP ringlet_node_up 1 where the node told its metrics', '# TYPE ringlet_node_up gauge'],
    samples: parts.map(({ nodeId, text }) => `ringlet_node_up{${nodeLabel(nodeId)}} ${text === undefined ? 0 : 1}`),
  })
  for (const { nodeId, text } of parts) {
    addNode(families, nodeLabel(nodeId), text ?? '')
  }
  const lines = [...families.values()].flatMap(({ headings, samples }) => [...headings, ...samples])
  return `${lines.join('\n')}\n`
}

/** Samples stand below their family's headings; those of a histogram have longer names than it. */
function addNode(families: Map<string, Family>, label: string, text: string): void {
  let family: Family | undefined
  let isNew = false
  for (const line of text.split('\n')) {
    const heading = /^# (?:HELP|TYPE) ([^\s]+)/.exec(line)
    if (heading !== null) {
      const name = heading[1]!
      const known = families.get(name)
      if (known !== family || known === undefined) {
        isNew = known === undefined
        family = known ?? { headings: [], samples: [] }
        families.set(name, family)
      }
      if (isNew) {
        family?.headings.push(line)
      }
    } else if (line !== '' && !line.startsWith('#')) {
      family?.samples.push(withLabel(line, label))
    }
  }
}

function withLabel(sample: string, label: string): string {
  const name = /^[^\s{]+/.exec(sample)?.[0] ?? ''
  const rest = sample.slice(name.length)
  if (!rest.startsWith('{')) {
    return `${name}{${label}}${rest}`
  }
  return `${name}{${label}${rest.startsWith('{}') ? '' : ','}${rest.slice(1)}`
}

function nodeLabel(nodeId: string): string {
  return `node="${nodeId.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')}"`
}
