import { Miniflare, Runtime } from 'miniflare'
import { afterEach, describe, expect, test } from 'vitest'
import { withV8Flags } from '../../edge/v8-flags.ts'

const { updateConfig } = Runtime.prototype
afterEach(() => {
  Runtime.prototype.updateConfig = updateConfig
})

function startWith(flags: string[]): Miniflare {
  Runtime.prototype.updateConfig = function update(config, ...rest) {
    const flagged = withV8Flags(config, flags)
    expect(withV8Flags(flagged, ['--never']), 'flags that are there stay').toBe(flagged)
    return updateConfig.call(this, flagged, ...rest)
  }
  const script = 'export default { fetch: () => new Response(typeof gc) }'
  return new Miniflare({ modules: true, script, handleRuntimeStdio: () => {} })
}

describe('V8’s flags', () => {
  test('reach the runtime that Miniflare starts', async () => {
    const runtime = startWith(['--expose-gc', '--max-semi-space-size=2'])
    try {
      const answer = await runtime.dispatchFetch('http://worker/')
      expect(await answer.text()).toBe('function')
    } finally {
      await runtime.dispose()
    }
  })

  test('are left out of a message of another layout', () => {
    const farRoot = Buffer.alloc(16)
    farRoot.writeBigUInt64LE(2n, 8)
    const small = Buffer.alloc(24)
    small.writeBigUInt64LE(1n << 48n, 8)
    for (const message of [farRoot, small]) {
      expect(withV8Flags(message, ['--expose-gc'])).toBe(message)
    }
  })
})
