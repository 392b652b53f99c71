/** Shows how far the start has come: a bar on a terminal; elsewhere a line a stage, and how much of it is done while it lasts. */

import { Presets, SingleBar } from 'cli-progress'

export interface LoadDisplay {
  /** `fraction` in [0, 1]. */
  show(stage: string, fraction: number): void
  done(): void
}

export function createLoadDisplay(stream: NodeJS.WriteStream): LoadDisplay {
  return stream.isTTY
    ? createBar(stream)
    : createLines(
        (line) => stream.write(`${line}\n`),
        () => performance.now(),
      )
}

function createBar(stream: NodeJS.WriteStream): LoadDisplay {
  const format = '{stage} [{bar}] {percentage}%'
  const bar = new SingleBar({ format, stream, hideCursor: true, clearOnComplete: true }, Presets.shades_classic)
  bar.start(1, 0, { stage: 'loading' })
  return {
    show: (stage, fraction) => bar.update(fraction, { stage }),
    done: () => bar.stop(),
  }
}

/** Milliseconds between two lines of one stage. */
const LINE_GAP_MS = 5_000

function createLines(write: (line: string) => void, now: () => number): LoadDisplay {
  let current: string | undefined
  let writtenAt = 0
  return {
    show: (stage, fraction) => {
      const at = now()
      if (stage === current && at - writtenAt < LINE_GAP_MS) {
        return
      }
      write(`loading: ${stage}${stage === current ? ` ${Math.floor(fraction * 100)} %` : ''}`)
      current = stage
      writtenAt = at
    },
    done: () => {},
  }
}
