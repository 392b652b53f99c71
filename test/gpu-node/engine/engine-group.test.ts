import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { EngineClient } from '../../../gpu-node/engine/engine-client.ts'
import { EngineGroup } from '../../../gpu-node/engine/engine-group.ts'
import { chooseEngine, type EngineLoad } from '../../../gpu-node/engine/engine-placement.ts'
import type { EngineEvent } from '../../../gpu-node/engine/engine-types.ts'
import { startEngine } from '../../../gpu-node/engine/start-engine.ts'
import { arithmeticAdapter, SMALL_ARITHMETIC } from '../../support/arithmetic-runner.ts'
import { aloneOnArithmetic, requestOf } from '../../support/engine-harness.ts'

const idle: EngineLoad = { healthy: true, inFlight: 0, maxRows: 4, holdsAdapter: false, adapters: 0 }

describe('where a sequence goes', () => {
  test('to the engine that holds its adapter, though another is idle', () => {
    expect(chooseEngine([idle, { ...idle, inFlight: 3, holdsAdapter: true }], true)).toBe(1)
  })

  test('elsewhere once the home has no row left and another has', () => {
    const full = { ...idle, inFlight: 4, holdsAdapter: true }
    expect(chooseEngine([idle, full], true)).toBe(0)
    expect(chooseEngine([{ ...idle, inFlight: 4 }, full], true)).toBe(1)
  })

  test('a new adapter goes to the least loaded, of equals to the one with the fewest', () => {
    expect(
      chooseEngine(
        [
          { ...idle, adapters: 2 },
          { ...idle, adapters: 1 },
        ],
        true,
      ),
    ).toBe(1)
    expect(
      chooseEngine(
        [
          { ...idle, inFlight: 1 },
          { ...idle, adapters: 9 },
        ],
        true,
      ),
    ).toBe(1)
    expect(chooseEngine([{ ...idle, adapters: 2 }, idle], false)).toBe(0)
  })

  test('never to a dead engine, always to some living one, and never to a queue while rows are free', () => {
    const load = fc.record({
      healthy: fc.boolean(),
      inFlight: fc.nat(9),
      maxRows: fc.integer({ min: 1, max: 6 }),
      holdsAdapter: fc.boolean(),
      adapters: fc.nat(5),
    })
    fc.assert(
      fc.property(fc.array(load, { minLength: 1, maxLength: 5 }), fc.boolean(), (engines, hasAdapter) => {
        const chosen = chooseEngine(engines, hasAdapter)
        const living = engines.filter(({ healthy }) => healthy)
        expect(chosen === undefined).toBe(living.length === 0)
        const engine = chosen === undefined ? undefined : engines[chosen]
        if (engine !== undefined) {
          expect(engine.healthy).toBe(true)
          const hasRoom = ({ inFlight, maxRows }: EngineLoad) => inFlight < maxRows
          expect(hasRoom(engine)).toBe(living.some(hasRoom))
        }
      }),
    )
  })
})

test('sequences of adapters on two engines get the tokens that they get alone, each adapter on one engine', async () => {
  const module = new URL('../../support/arithmetic-runner.ts', import.meta.url).href
  const engines = await Promise.all([1, 2].map(() => startEngine({ runner: { module, options: SMALL_ARITHMETIC } })))
  const group = new EngineGroup(engines)
  const results = await Promise.all(
    Array.from({ length: 6 }, (_, i) => {
      const adapter = arithmeticAdapter(1 + (i % 3))
      const request = requestOf(`s${i}`, { promptTokens: Int32Array.of(i, 7), adapterDigest: adapter.digest })
      return new Promise<{ request: typeof request; value: number; tokens: number[] }>((resolve) => {
        const tokens: number[] = []
        group.submit(request, adapter, (event) => {
          if (event.kind === 'token') {
            tokens.push(event.token.tokenId)
          }
          if (event.kind === 'finished' || event.kind === 'failed') {
            resolve({ request, value: 1 + (i % 3), tokens })
          }
        })
      })
    }),
  )
  for (const { request, value, tokens } of results) {
    const alone = aloneOnArithmetic(request, value, SMALL_ARITHMETIC.maxPositions)
    expect(tokens).toEqual(alone.map(({ tokenId }) => tokenId))
  }
  const resident = await Promise.all(engines.map(async (engine) => (await engine.freshStats()).residentAdapters))
  const digests = resident.flat().map(({ digest }) => digest)
  expect([...digests].sort()).toEqual(['adapter-1', 'adapter-2', 'adapter-3'])
  expect(resident.every((adapters) => adapters.length > 0)).toBe(true)
  await group.close()
})

test('a dead engine ends its group: what was submitted fails, and the reason is told', async () => {
  const start = (file: string, options: object): Promise<EngineClient> =>
    startEngine({ runner: { module: new URL(file, import.meta.url).href, options } })
  const good = await start('../../support/arithmetic-runner.ts', SMALL_ARITHMETIC)
  const second = await start('../../support/arithmetic-runner.ts', SMALL_ARITHMETIC)
  const group = new EngineGroup([good, second])
  expect(group.spec.maxRows).toBe(2 * SMALL_ARITHMETIC.maxRows)
  const adapter = arithmeticAdapter(5)
  await group.preloadAdapter(adapter)
  await group.freshStats()
  const homes = [good, second].filter((client) => client.isResident(adapter.digest))
  expect(homes.length).toBe(1)
  const last = new Promise<EngineEvent>((resolve) => {
    const request = requestOf('s', { adapterDigest: adapter.digest, maxNewTokens: 90 })
    group.submit(request, adapter, (event) => {
      if (event.kind === 'started') {
        void homes[0]!.close()
      }
      if (event.kind === 'failed' || event.kind === 'finished') {
        resolve(event)
      }
    })
  })
  expect((await last).kind).toMatch(/failed|finished/)
  await group.ended
  expect(group.healthy).toBe(false)
  await group.close()
})
