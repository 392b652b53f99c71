/** What is wrong with a caller's grammar, as the error that its caller gets. */

import { RingletError } from '../../shared/errors.ts'

export function grammarInvalid(message: string): RingletError {
  return new RingletError('grammar_invalid', message)
}
