/** The engine behind its worker thread, through the client that the HTTP side uses. */

import { afterEach, describe, expect, test } from 'vitest'
import type { EngineClient, EngineInit } from '../../../gpu-node/engine/engine-client.ts'
import { EngineGroup } from '../../../gpu-node/engine/engine-group.ts'
import type { EngineEvent } from '../../../gpu-node/engine/engine-types.ts'
import { startEngine } from '../../../gpu-node/engine/start-engine.ts'
import {
  type ArithmeticOptions,
  arithmeticAdapter,
  arithmeticHiddenStates,
  SMALL_ARITHMETIC,
} from '../../support/arithmetic-runner.ts'
import { aloneOnArithmetic, requestOf } from '../../support/engine-harness.ts'
import type { FaultyOptions } from '../../support/faulty-runner.ts'

const clients: EngineClient[] = []

afterEach(async () => {
  await Promise.all(clients.splice(0).map((client) => client.close()))
})

describe.each([
  ['an engine', (client: EngineClient) => client],
  ['a group of one engine', (client: EngineClient) => new EngineGroup([client])],
])('%s', (_kind, wrap) => {
  async function start(
    init: Partial<EngineInit> = {},
    options: Partial<ArithmeticOptions> = {},
  ): Promise<EngineClient> {
    const module = new URL('../../support/arithmetic-runner.ts', import.meta.url).href
    const client = wrap(
      await startEngine({ runner: { module, options: { ...SMALL_ARITHMETIC, ...options } }, ...init }),
    )
    clients.push(client)
    return client
  }

  async function startFaulty(options: Partial<FaultyOptions>): Promise<EngineClient> {
    const module = new URL('../../support/faulty-runner.ts', import.meta.url).href
    return start({ runner: { module, options: { ...SMALL_ARITHMETIC, ...options } } })
  }

  /** Submits and resolves with all events once the last has come. */
  function run(
    client: EngineClient,
    ...[request, adapter]: Parameters<EngineClient['submit']> extends [infer R, infer A, ...unknown[]] ? [R, A?] : never
  ) {
    return new Promise<EngineEvent[]>((resolve) => {
      const events: EngineEvent[] = []
      client.submit(request, adapter, (event) => {
        events.push(event)
        if (event.kind === 'finished' || event.kind === 'failed' || event.kind === 'aborted') {
          resolve(events)
        }
      })
    })
  }

  const tokenIds = (events: EngineEvent[]) =>
    events.flatMap((event) => (event.kind === 'token' ? [event.token.tokenId] : []))

  test('sequences of several adapters get the tokens that they get alone, each event in its order', async () => {
    const stages: string[] = []
    const module = new URL('../../support/arithmetic-runner.ts', import.meta.url).href
    const client = wrap(
      await startEngine(
        { runner: { module, options: SMALL_ARITHMETIC } },
        { onProgress: ({ stage }) => stages.push(stage) },
      ),
    )
    clients.push(client)
    expect(stages).toEqual(['read'])
    expect(client.spec).toEqual(SMALL_ARITHMETIC)

    const adapters = [undefined, arithmeticAdapter(1), arithmeticAdapter(2), arithmeticAdapter(3)]
    const results = await Promise.all(
      Array.from({ length: 24 }, async (_, i) => {
        const adapter = adapters[i % 4]
        const base = requestOf(`s${i}`, { promptTokens: Int32Array.of(i, 7, 3 + i), maxNewTokens: 12 })
        const request = adapter === undefined ? base : { ...base, adapterDigest: adapter.digest }
        return { request, value: i % 4, events: await run(client, request, adapter) }
      }),
    )
    for (const { request, value, events } of results) {
      const alone = aloneOnArithmetic(request, value, SMALL_ARITHMETIC.maxPositions)
      expect(tokenIds(events)).toEqual(alone.map((token) => token.tokenId))
      expect(events.map(({ kind }) => kind)).toEqual(['started', ...alone.map(() => 'token'), 'finished'])
    }
    const stats = await client.freshStats()
    expect(stats).toMatchObject({ waiting: 0, freeRows: 4, decodeTokens: 24 * 11, invariantViolations: [] })
  })

  test('an adapter that was put out of its slot comes back with its next sequence', async () => {
    const client = await start({}, { adapterSlots: 1 })
    for (const value of [1, 2, 1, 2]) {
      const adapter = arithmeticAdapter(value)
      const request = requestOf(`of-${value}`, { adapterDigest: adapter.digest, maxNewTokens: 3 })
      const events = await run(client, request, adapter)
      expect(tokenIds(events)).toEqual(aloneOnArithmetic(request, value, 96).map((token) => token.tokenId))
      await client.freshStats()
      expect(client.isResident(adapter.digest)).toBe(true)
    }
    expect(client.isResident('adapter-1')).toBe(false)
  })

  test('an abort ends a running sequence within two steps, and the others go on', async () => {
    const client = await start({}, { maxPositions: 100_000 })
    const long = { maxNewTokens: 90_000 }
    const other = run(client, requestOf('other', { maxNewTokens: 50 }), undefined)
    const kinds = await new Promise<string[]>((resolve) => {
      const seen: string[] = []
      const abort = client.submit(requestOf('aborted', long), undefined, (event) => {
        seen.push(event.kind)
        if (seen.length === 10) {
          abort()
          abort()
        }
        if (event.kind === 'aborted') {
          resolve(seen)
        }
      })
    })
    expect(kinds.filter((kind) => kind === 'aborted')).toHaveLength(1)
    expect(tokenIds(await other)).toHaveLength(50)
    const stats = await client.freshStats()
    expect(stats.freeRows).toBe(4)
    expect(stats.maxAbortSteps).toBeLessThanOrEqual(2)
  })

  test('a deadline on the caller’s clock holds in the engine', async () => {
    const client = await start({}, { maxPositions: 1_000_000 })
    const deadline = performance.timeOrigin + performance.now() + 50
    const events = await run(client, requestOf('late', { maxNewTokens: 900_000, deadline }))
    expect(events.at(-1)).toMatchObject({ kind: 'failed', code: 'deadline_exceeded' })
  })

  test('hidden states are pooled', async () => {
    const client = await start({ limits: { prefillChunk: 2 } })
    const tokens = Int32Array.of(4, 5, 6, 7, 8)
    const states = arithmeticHiddenStates(tokens, 2, 6)
    const adapter = arithmeticAdapter(2)
    const last = await client.embed({ tokens, tenantId: 'a', adapter, pooling: 'last' })
    expect(last).toEqual(states.subarray(4 * 6))
    const mean = await client.embed({ tokens, tenantId: 'a', adapter, pooling: 'mean' })
    const sums = Array.from(mean, (_, i) => [0, 1, 2, 3, 4].reduce((sum, t) => sum + (states[t * 6 + i] as number), 0))
    expect(mean).toEqual(Float32Array.from(sums, (sum) => sum / 5))
    const aborted = client.embed({
      tokens,
      tenantId: 'a',
      pooling: 'mean',
      signal: AbortSignal.abort(new Error('gone')),
    })
    await expect(aborted).rejects.toThrow('gone')
    await expect(client.embed({ tokens: new Int32Array(0), tenantId: 'a', pooling: 'mean' })).rejects.toMatchObject({
      code: 'field_invalid',
    })
  })

  test('adapters are preloaded, pinned and unloaded', async () => {
    const client = await start()
    const [one, two, three] = [1, 2, 3].map(arithmeticAdapter) as [
      ReturnType<typeof arithmeticAdapter>,
      ...ReturnType<typeof arithmeticAdapter>[],
    ]
    expect(await client.preloadAdapter(one)).toBe(true)
    await client.pinAdapter(one)
    await expect(client.pinAdapter(two as typeof one)).rejects.toMatchObject({ code: 'adapter_capacity' })
    expect(await client.preloadAdapter(two as typeof one)).toBe(true)
    expect(await client.preloadAdapter(three as typeof one)).toBe(true)
    await client.freshStats()
    expect(['adapter-1', 'adapter-2', 'adapter-3'].map((digest) => client.isResident(digest))).toEqual([
      true,
      false,
      true,
    ])
    const running = run(client, requestOf('s', { adapterDigest: 'adapter-1' }), one)
    await client.unloadAdapter('adapter-1')
    expect((await running).at(-1)?.kind).toBe('finished')
    await client.freshStats()
    expect(client.isResident('adapter-1')).toBe(false)
  })

  test('drain lets what is here end and refuses what comes', async () => {
    const client = await start()
    const before = run(client, requestOf('before', { maxNewTokens: 40 }), undefined)
    const drained = client.drain()
    const after = run(client, requestOf('after'), undefined)
    expect((await after).at(-1)).toMatchObject({ kind: 'failed', code: 'node_draining' })
    await drained
    expect((await before).at(-1)).toMatchObject({ kind: 'finished', reason: 'length' })
  })

  test('close ends what is left, and the thread', async () => {
    const client = await start({}, { maxPositions: 100_000 })
    const running = run(client, requestOf('running', { maxNewTokens: 90_000 }), undefined)
    await client.freshStats()
    await client.close()
    expect((await running).at(-1)).toMatchObject({ kind: 'failed', code: 'node_draining' })
    expect(await client.ended).toBeUndefined()
    const late = await run(client, requestOf('late'), undefined)
    expect(late).toMatchObject([{ kind: 'failed', code: 'engine_failed' }])
  })

  test.each([
    ['the thread exits', { decodesBeforeExit: 3 }],
    ['the model fails for good', { decodesBeforeFailure: 3 }],
  ])('when %s, every sequence gets one last event and the client says that it is unhealthy', async (_, options) => {
    const client = await startFaulty(options)
    const all = Array.from({ length: 10 }, (_, i) => run(client, requestOf(`s${i}`, { maxNewTokens: 30 }), undefined))
    for (const events of await Promise.all(all)) {
      expect(events.at(-1)).toMatchObject({ kind: 'failed', code: 'engine_failed' })
      expect(events.filter(({ kind }) => kind === 'failed')).toHaveLength(1)
    }
    expect(await client.ended).toBeInstanceOf(Error)
    expect(client.healthy).toBe(false)
    expect(await run(client, requestOf('later'), undefined)).toMatchObject([{ kind: 'failed', code: 'engine_failed' }])
    await expect(client.freshStats()).rejects.toMatchObject({ code: 'engine_failed' })
  })

  test('a model that cannot be loaded is refused with its reason', async () => {
    await expect(startFaulty({ refuses: true })).rejects.toMatchObject({ message: 'no such model' })
  })
})
