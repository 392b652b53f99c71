/** Which file it is and which state of it: equal text for a path and an open handle means the same bytes, if nobody writes now. */

import type { BigIntStats } from 'node:fs'

/** The device and inode say which file, whatever links led to it; a write changes the rest. */
export function fileVersion({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats): string {
  return `${dev} ${ino} ${size} ${mtimeNs} ${ctimeNs}`
}

/** By file name. */
export type FileVersions = Readonly<Record<string, string>>
