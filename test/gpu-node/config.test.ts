import { describe, expect, test } from 'vitest'
import { engineLimits } from '../../gpu-node/build-node.ts'
import { type NodeConfig, readConfig } from '../../gpu-node/config.ts'
import { DEFAULT_LIMITS } from '../../gpu-node/engine/engine-limits.ts'

const read = (argv: string[] = [], environment: Record<string, string> = {}): NodeConfig => {
  const config = readConfig(argv, 4, environment)
  if (config === 'help') {
    throw new Error('unreachable: no --help')
  }
  return config
}

describe('the node’s settings', () => {
  test('have sensible values by themselves', () => {
    expect(read()).toMatchObject({
      host: '127.0.0.1',
      port: 8081,
      device: { kind: 'cpu' },
      threads: 4,
      maxSequences: 16,
      maxBestOf: 2,
      ticketKeys: undefined,
      sources: { hub: { endpoint: 'https://huggingface.co', offline: false } },
    })
  })

  test('read sizes, lists and keys', () => {
    const config = read(
      ['--adapter-ram', '512MiB', '--adapter-disk', '1.5G', '--adapter-root', 'a', '--adapter-root', 'b'],
      { RINGLET_TICKET_KEYS: 'new:0123456789abcdef,old:fedcba9876543210', HF_HUB_OFFLINE: 'YES', HF_ENDPOINT: '' },
    )
    expect(config.adapterRamBytes).toBe(512 * 2 ** 20)
    expect(config.adapterDiskBytes).toBe(1.5 * 2 ** 30)
    expect(config.adapterRoots.map((root) => root.split('/').at(-1))).toEqual(['a', 'b'])
    expect(config.ticketKeys?.keys.map(({ id }) => id)).toEqual(['new', 'old'])
    expect(config.sources.hub).toEqual({ endpoint: 'https://huggingface.co', offline: true })
  })

  test('reach the engine under the names that it reads', () => {
    const limits = engineLimits(read(['--prefill-chunk', '33', '--prefix-cache', '0', '--max-waiting', '9']))
    expect({ ...DEFAULT_LIMITS, ...limits }).toEqual({
      ...DEFAULT_LIMITS,
      prefillChunk: 33,
      prefixCacheBytes: 0,
      maxWaiting: 9,
    })
  })

  test.each([
    [['--port', '70000'], {}, '--port'],
    [['--dtype', 'f8'], {}, '--dtype'],
    [['--threads', 'many'], {}, '--threads'],
    [['--adapter-ram', 'lots'], {}, '--adapter-ram'],
    [['--edge-url', 'ftp://x'], {}, '--edge-url'],
    [['--nonsense'], {}, '--nonsense'],
    [[], { HF_ENDPOINT: 'nowhere' }, 'HF_ENDPOINT'],
    [[], { RINGLET_TICKET_KEYS: 'k:short' }, 'RINGLET_TICKET_KEYS'],
  ])('%j %j is refused by name, in one line', (argv, environment: Record<string, string>, name) => {
    try {
      read(argv, environment)
      expect.fail('was taken')
    } catch (error) {
      const { message } = error as Error
      expect(message).toContain(name)
      expect(message).not.toContain('\n')
    }
  })

  test('never show a key', () => {
    expect(() => read(['--ticket-keys', 'k:secret!'])).toThrow(/^--ticket-keys: (?!.*secret!)/)
  })
})
