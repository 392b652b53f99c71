/** A tenant's usage by day and adapter, in its Durable Object's SQLite. */

/** What one or several ended requests for one adapter used. */
export interface UsageReport {
  adapter: string
  requests: number
  promptTokens: number
  generatedTokens: number
}

export interface UsageEntry extends UsageReport {
  /** UTC, `2026-11-23`. */
  day: string
}

export function addUsage(sum: UsageReport, report: UsageReport): void {
  sum.requests += report.requests
  sum.promptTokens += report.promptTokens
  sum.generatedTokens += report.generatedTokens
}

export function createUsageTable(sql: SqlStorage) {
  sql.exec(`CREATE TABLE IF NOT EXISTS usage (
    day TEXT NOT NULL,
    adapter TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    generated_tokens INTEGER NOT NULL,
    PRIMARY KEY (day, adapter)
  ) WITHOUT ROWID`)

  return {
    add(entry: UsageEntry): void {
      sql.exec(
        `INSERT INTO usage (day, adapter, requests, prompt_tokens, generated_tokens) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (day, adapter) DO UPDATE SET requests = requests + excluded.requests,
           prompt_tokens = prompt_tokens + excluded.prompt_tokens,
           generated_tokens = generated_tokens + excluded.generated_tokens`,
        entry.day,
        entry.adapter,
        entry.requests,
        entry.promptTokens,
        entry.generatedTokens,
      )
    },

    /** Both days included. */
    between(fromDay: string, toDay: string): UsageEntry[] {
      return sql
        .exec<{ day: string; adapter: string; requests: number; prompt_tokens: number; generated_tokens: number }>(
          'SELECT * FROM usage WHERE day BETWEEN ? AND ? ORDER BY day, adapter',
          fromDay,
          toDay,
        )
        .toArray()
        .map((row) => ({
          adapter: row.adapter,
          day: row.day,
          requests: row.requests,
          promptTokens: row.prompt_tokens,
          generatedTokens: row.generated_tokens,
        }))
    },

    /** `month` is `2026-11`. */
    monthTokens(month: string): number {
      return sql
        .exec<{ tokens: number }>(
          'SELECT COALESCE(SUM(prompt_tokens + generated_tokens), 0) AS tokens FROM usage WHERE day BETWEEN ? AND ?',
          `${month}-01`,
          `${month}-31`,
        )
        .one().tokens
    },
  }
}
