/** The folder of package.json, from the sources and from the bundle alike. */

import { createRequire } from 'node:module'
import { dirname } from 'node:path'

export const PACKAGE_FILE = createRequire(import.meta.url).resolve('#package.json')
export const PACKAGE_ROOT = dirname(PACKAGE_FILE)
