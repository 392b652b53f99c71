/** Applies `migrations/*.sql` to a local database, noted in the table that `wrangler d1 migrations` uses. Runs in Node. */

import { readdir, readFile } from 'node:fs/promises'
import type { D1Database } from '@cloudflare/workers-types'

const FOLDER = new URL('./migrations/', import.meta.url)

export async function applyMigrations(db: D1Database): Promise<void> {
  await db
    .prepare(
      `CREATE TABLE IF NOT EXISTS d1_migrations (
         id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT UNIQUE,
         applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP NOT NULL)`,
    )
    .run()
  const { results } = await db.prepare('SELECT name FROM d1_migrations').all<{ name: string }>()
  const applied = new Set(results.map((row) => row.name))
  const names = (await readdir(FOLDER)).filter((name) => name.endsWith('.sql') && !applied.has(name)).sort()
  for (const name of names) {
    const sql = await readFile(new URL(name, FOLDER), 'utf8')
    const statements = sql
      .replace(/^\s*--.*$/gm, '')
      .split(/;\s*$/m)
      .filter((statement) => statement.trim() !== '')
    const note = db.prepare('INSERT INTO d1_migrations (name) VALUES (?)').bind(name)
    // One transaction: a migration is applied whole or not at all.
    await db.batch([...statements.map((statement) => db.prepare(statement)), note])
  }
}
