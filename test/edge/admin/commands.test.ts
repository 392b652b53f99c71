import { type CommandDef, runCommand } from 'citty'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { aliasCommand } from '../../../gpu-node/cli/alias-command.ts'
import { nodesCommand } from '../../../gpu-node/cli/nodes-command.ts'
import { tenantCommand } from '../../../gpu-node/cli/tenant-command.ts'
import { usageCommand } from '../../../gpu-node/cli/usage-command.ts'
import type { CreatedTenant, IssuedToken } from '../../../shared/edge-api.ts'
import { type EdgeWorld, startEdgeWorld } from '../edge-world.ts'

let world: EdgeWorld
let printed: string[]
beforeAll(async () => {
  world = await startEdgeWorld()
})
afterAll(() => world.close())
beforeEach(() => {
  vi.stubEnv('RINGLET_EDGE_URL', world.url)
  vi.stubEnv('RINGLET_ADMIN_TOKEN', world.vars.RINGLET_ADMIN_TOKEN)
  printed = []
  vi.spyOn(console, 'log').mockImplementation((line) => {
    printed.push(String(line))
  })
  vi.spyOn(process.stdout, 'write').mockImplementation((text) => {
    printed.push(String(text))
    return true
  })
})
afterEach(() => {
  vi.unstubAllEnvs()
  vi.restoreAllMocks()
})

async function run(command: CommandDef, ...rawArgs: string[]): Promise<string> {
  printed.length = 0
  await runCommand(command, { rawArgs })
  return printed.join('\n')
}

describe('ringlet tenant', () => {
  test('creates one whose token works, with the scopes and limits of its flags', async () => {
    const flags = ['--sources', 'local', '--adapters', 'a/*,b', '--rpm', '5', '--tokens-per-month', '1000', '--json']
    const created = JSON.parse(await run(tenantCommand, 'create', 'shop', ...flags)) as CreatedTenant
    expect(created).toMatchObject({
      name: 'shop',
      scopes: { sources: ['local'], adapters: ['a/*', 'b'], admin: false },
      limits: { requestsPerMinute: 5, tokensPerMonth: 1000 },
    })
    expect((await world.get('/v1/models', created.token.token)).status).toBe(200)
    await run(tenantCommand, 'update', 'shop', '--rpm', 'none', '--concurrent', '2')
    expect(JSON.parse(await run(tenantCommand, 'show', 'shop'))).toMatchObject({
      limits: { tokensPerMonth: 1000, concurrentRequests: 2 },
    })
    expect(await run(tenantCommand, 'list')).toMatch(/^shop +t_\w+ +active/m)
    await run(tenantCommand, 'update', 'shop', '--disabled')
    expect(await run(tenantCommand, 'list')).toMatch(/^shop +t_\w+ +disabled/m)
  })

  test('issues, rotates and revokes tokens', async () => {
    await run(tenantCommand, 'create', 'keys')
    const issued = JSON.parse(await run(tenantCommand, 'issue', 'keys', '--label', 'ci', '--json')) as IssuedToken
    const rotated = JSON.parse(await run(tenantCommand, 'rotate', issued.keyId, '--json')) as IssuedToken
    expect((await world.get('/v1/models', issued.token)).status).toBe(401)
    expect((await world.get('/v1/models', rotated.token)).status).toBe(200)
    await run(tenantCommand, 'revoke', rotated.keyId)
    expect((await world.get('/v1/models', rotated.token)).status).toBe(401)
    const shown = await run(tenantCommand, 'tokens', 'keys')
    expect(shown).toMatch(new RegExp(`^${rotated.keyId} +revoked .*ci$`, 'm'))
    expect(shown).not.toContain(rotated.token.split('_')[2])
  })

  test.each([
    [['create', 'x', '--rmp', '5'], 'unknown option --rmp'],
    [['create', 'x', '--rpm', 'lots'], '--rpm is a whole number'],
    [['create', 'x', 'y'], 'one argument too many: y'],
    [['create', 'Not Allowed'], 'name'],
    [['show', 'nobody'], 'there is no such tenant'],
  ])('%j says what is wrong', async (args, message) => {
    await expect(run(tenantCommand, ...args)).rejects.toThrow(message)
  })
})

describe('ringlet alias, nodes and usage', () => {
  test('set, list and remove an alias', async () => {
    expect(await run(aliasCommand, 'set', 'pirate', 'hub:org/pirate@v2')).toContain('generation 1')
    expect(await run(aliasCommand, 'list')).toMatch(/^pirate +hub:org\/pirate@v2 +1 /m)
    await expect(run(aliasCommand, 'set', 'pirate', 'local:x', '--if-generation', '9')).rejects.toThrow('generation 1')
    await expect(run(aliasCommand, 'set', 'pirate', 'x')).rejects.toThrow('names no source')
    await run(aliasCommand, 'remove', 'pirate')
    expect(await run(aliasCommand, 'list')).not.toContain('pirate')
  })

  test('list nodes, drain one, explain a placement', async () => {
    expect(await run(nodesCommand, 'list')).toMatch(/^node-0 +http:.*demo\/base +0\/8 +up$/m)
    const explained = JSON.parse(await run(nodesCommand, 'explain', 'local:x', '--json')) as unknown
    expect(explained).toMatchObject({ chosen: { nodeId: 'node-0' } })
    const told = await run(nodesCommand, 'explain', 'local:x')
    expect(told).toMatch(/^local:x: node-0 \(\w+\)$/m)
    expect(told).toMatch(/^node-0 +1, owner +none +\d+\/\d+$/m)
    expect(await run(nodesCommand, 'drain', 'node-0')).toContain('no new requests')
    expect(await run(nodesCommand, 'list')).toMatch(/^node-0 .* draining$/m)
    await run(nodesCommand, 'undrain', 'node-0')
    expect(await run(nodesCommand, 'list')).toMatch(/^node-0 .* up$/m)
    const fetched = JSON.parse(await run(nodesCommand, 'prefetch', 'local:x', '--json')) as unknown
    expect(fetched).toMatchObject([{ node: 'node-0', status: 200 }])
  })

  test('print usage as a table and as CSV', async () => {
    const { token } = await world.createTenant({ name: 'metered' })
    await world.post('/generate', token.token, { inputs: 'x' })
    await expect
      .poll(() => run(usageCommand, '--tenant', 'metered'), { timeout: 5_000 })
      .toMatch(/^\d{4}-\d\d-\d\d +metered +base +1 +3 +2$/m)
    expect(await run(usageCommand, '--tenant', 'metered', '--csv')).toMatch(/^metered,base,\d{4}-\d\d-\d\d,1,3,2\r$/m)
  })

  test('usage of more tenants than a page is one table all the same', async () => {
    const insert = world.database.prepare(
      "INSERT INTO tenants (id, name, scopes, limits, created_at) VALUES (?1, ?1, '{}', '{}', 0)",
    )
    const names = Array.from({ length: 101 }, (_, n) => `aa-${String(n).padStart(3, '0')}`)
    await world.database.batch(names.map((name) => insert.bind(name)))
    const { token } = await world.createTenant({ name: 'zz-last' })
    await world.post('/generate', token.token, { inputs: 'x' })
    await expect.poll(() => run(usageCommand, '--csv'), { timeout: 20_000 }).toMatch(/^zz-last,base,/m)
    expect((await run(usageCommand, '--csv')).match(/^tenant,/gm)).toHaveLength(1)
    const { body } = await world.admin<{ next: string }>('GET', '/admin/usage')
    expect(body.next).toBe('aa-099')
    const csv = await world.get('/admin/usage?format=csv', world.vars.RINGLET_ADMIN_TOKEN ?? '')
    expect(csv.headers.get('link')).toMatch(/^<\/admin\/usage\?.*&after=aa-099>; rel="next"$/)
    await csv.body?.cancel()
  })

  test('without an edge they say how to name one', async () => {
    vi.stubEnv('RINGLET_EDGE_URL', undefined)
    await expect(run(nodesCommand, 'list', '--state', '/nonexistent')).rejects.toThrow('set RINGLET_EDGE_URL')
  })
})
