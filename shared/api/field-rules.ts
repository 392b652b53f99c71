/** Which fields an object may have: those that count, those that are told as ignored, those that are refused. */

import { RingletError } from '../errors.ts'
import { fieldUnknown, formatPath, type Path } from './body-parse.ts'

export interface FieldRules {
  known: readonly string[]
  /** Defined by the API, without influence on the answer. */
  ignored?: readonly string[]
  /** Defined by the API, and taking them without effect would lie. */
  refused?: readonly string[]
  /** The known field that chooses the adapter: likely meant by an unknown one that could be such a choice. */
  adapterField?: string
}

/** A field that nobody knows and that may be meant to choose an adapter: ignoring it would answer with another model. */
export function couldNameAdapter(field: string): boolean {
  return /adap|lora|peft|model|merge|^source$|^revision$/i.test(field)
}

/** The paths of fields that are given and ignored. A `null` in a field that the API defines is as good as its absence. */
export function sortFields(given: object, path: Path, rules: FieldRules): string[] {
  const { known, ignored = [], refused = [], adapterField } = rules
  const told: string[] = []
  for (const [name, value] of Object.entries(given)) {
    if (known.includes(name)) {
      continue
    }
    const isIgnored = ignored.includes(name)
    if (!isIgnored && !refused.includes(name)) {
      throw fieldUnknown([...path, name], [...known, ...ignored], '', couldNameAdapter(name) ? adapterField : undefined)
    }
    if (value == null) {
      continue
    }
    const param = formatPath([...path, name])
    if (!isIgnored) {
      throw new RingletError('field_invalid', `\`${param}\` is not supported`, { param })
    }
    told.push(param)
  }
  return told
}
