/**
 * `npm run ringlet -- COMMAND`: the operator's and the tenant's tools. Each command is a file of its own, loaded when it is
 * asked for. What goes wrong is said in one line, and the exit status is 1.
 */

import { runRinglet } from './run-ringlet.ts'

process.exitCode = await runRinglet(process.argv.slice(2))
