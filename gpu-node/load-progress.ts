/** Shows how far the start has come: a bar on a terminal, a line a stage elsewhere. */

import { Presets, SingleBar } from 'cli-progress'

export interface LoadDisplay {
  /** `fraction` in [0, 1]. */
  show(stage: string, fraction: number): void
  done(): void
}

export function createLoadDisplay(stream: NodeJS.WriteStream): LoadDisplay {
  return stream.isTTY ? createBar(stream) : createLines((line) => stream.write(`${line}\n`))
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

function createLines(write: (line: string) => void): LoadDisplay {
  let current: string | undefined
  return {
    show: (stage) => {
      if (stage !== current) {
        current = stage
        write(`loading: ${stage}`)
      }
    },
    done: () => {},
  }
}
