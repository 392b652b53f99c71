/**
 * Where a JSON text has strings of bounded length. xgrammar spends 10 ms and more a character to compile a counted repetition
 * (32,000 tokens), so lengths are counted beside the grammar, wherever the place in the text tells the bound: everywhere but
 * below unions of several objects, arrays or strings.
 */

export interface LengthBound {
  min: number
  /** `undefined`: none. */
  max: number | undefined
}

/** A place in the text. May refer to itself. */
export interface LengthNode {
  bound?: LengthBound
  properties?: Map<string, LengthNode>
  /** Properties without a node of their own. */
  additional?: LengthNode
  prefix?: LengthNode[]
  items?: LengthNode
  /** All that is said of this place is said there. */
  same?: LengthNode
}

export function propertyNode(parent: LengthNode, name: string): LengthNode {
  parent.properties ??= new Map()
  const node: LengthNode = {}
  parent.properties.set(name, node)
  return node
}

export function resolveNode(node: LengthNode | undefined): LengthNode | undefined {
  let at = node
  // Chains are as long as `$ref`s to `$ref`s; a circle of them has no grammar.
  for (let i = 0; at?.same !== undefined && i < 100; i++) {
    at = at.same
  }
  return at
}

/** Every bound below `root`. */
export function collectBounds(root: LengthNode): LengthBound[] {
  const bounds: LengthBound[] = []
  const seen = new Set<LengthNode>()
  const open = [root]
  for (let node = open.pop(); node !== undefined; node = open.pop()) {
    if (seen.has(node)) {
      continue
    }
    seen.add(node)
    if (node.bound !== undefined) {
      bounds.push(node.bound)
    }
    const below = [node.same, node.items, node.additional, ...(node.prefix ?? []), ...(node.properties?.values() ?? [])]
    open.push(...below.filter((next) => next !== undefined))
  }
  return bounds
}
