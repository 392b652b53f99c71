/** The activations of feed-forward branches, as nodes of the graph. */

import type { Activation } from '../decoder-spec.ts'
import { type GraphWriter, MICROSOFT } from './graph-writer.ts'

export function writeActivation(graph: GraphWriter, activation: Activation, x: string): string {
  switch (activation) {
    case 'silu':
      return graph.node('QuickGelu', [x], { domain: MICROSOFT, attributes: { alpha: { float: 1 } } })
    case 'gelu':
      return graph.node('Gelu', [x], { attributes: { approximate: 'none' } })
    case 'gelu_tanh':
      return graph.node('Gelu', [x], { attributes: { approximate: 'tanh' } })
    case 'relu':
      return graph.node('Relu', [x])
  }
}
