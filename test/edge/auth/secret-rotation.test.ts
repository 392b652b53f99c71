import { describe, expect, test } from 'vitest'
import { startEdge } from '../../../edge/dev.ts'
import type { CreatedTenant } from '../../../shared/edge-api.ts'
import { HEARTBEAT_PATH, HEARTBEAT_SIGNATURE_HEADER } from '../../../shared/fleet.ts'
import { signHeartbeat } from '../../../shared/heartbeat-signature.ts'
import { startStubNode } from '../stub-node.ts'

const NEW = { id: 'k2', secret: 'the-new-secret-of-enough-length' }
const OLD = { id: 'k1', secret: 'the-old-secret-of-enough-length' }
const BOTH = `${NEW.id}:${NEW.secret},${OLD.id}:${OLD.secret}`

describe('while a secret is being changed', () => {
  test('nodes that sign with the old and the new one join, and tickets are signed with the new', async () => {
    const edge = await startEdge({ port: 0, vars: { RINGLET_TICKET_KEYS: BOTH, RINGLET_JOIN_KEYS: BOTH } })
    // A node that got the new key already still verifies with the old; this one knows the new alone.
    const node = await startStubNode('node-0', { keys: [NEW] })
    const report = async (key: typeof OLD) => {
      const body = JSON.stringify(node.heartbeat())
      const signature = await signHeartbeat(body, { keys: [key] }, Date.now())
      return fetch(edge.url + HEARTBEAT_PATH, {
        method: 'POST',
        headers: { [HEARTBEAT_SIGNATURE_HEADER]: signature },
        body,
      })
    }
    try {
      expect((await report(OLD)).status).toBe(200)
      expect((await report(NEW)).status).toBe(200)
      expect((await report({ id: 'k1', secret: 'a-guess-of-more-than-enough-length' })).status).toBe(401)
      const admin = { authorization: `Bearer ${edge.vars.RINGLET_ADMIN_TOKEN}`, 'content-type': 'application/json' }
      const created = await fetch(`${edge.url}/admin/tenants`, { method: 'POST', headers: admin, body: '{"name":"x"}' })
      const { token } = (await created.json()) as CreatedTenant
      const answer = await fetch(`${edge.url}/generate`, {
        method: 'POST',
        headers: { ...admin, authorization: `Bearer ${token.token}` },
        body: JSON.stringify({ inputs: 'x' }),
      })
      expect(answer.status).toBe(200)
    } finally {
      await Promise.all([edge.dispose(), node.close()])
    }
  })

  test('settings that are missing or malformed stop every request, and the log names them without their values', async () => {
    const lines: string[] = []
    const edge = await startEdge({
      port: 0,
      vars: { RINGLET_TICKET_KEYS: 'nocolon-secret-value', RINGLET_ADMIN_TOKEN: 'short' },
      onLog: (line) => lines.push(line),
    })
    try {
      const response = await fetch(`${edge.url}/health`)
      expect([response.status, await response.text()]).toEqual([500, expect.not.stringContaining('RINGLET')])
      await expect.poll(() => lines.join('\n')).toContain('RINGLET_TICKET_KEYS')
      expect(lines.join('\n')).toContain('RINGLET_ADMIN_TOKEN')
      expect(lines.join('\n')).not.toMatch(/nocolon|short/)
    } finally {
      await edge.dispose()
    }
  })
})
