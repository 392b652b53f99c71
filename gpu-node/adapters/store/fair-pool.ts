/**
 * A bounded number of jobs at once, tenants taking turns: one tenant's hundred loads never stand before another's one.
 * A job that several tenants wait for stands in each one's line and runs when the first of them has its turn.
 */

export interface FairPoolLimits {
  /** Jobs at once. */
  jobs: number
  /** Jobs at once that one tenant's turn started. */
  jobsPerTenant: number
}

/** For jobs of seconds: one tenant never holds all places, so that another's job need not wait for any of them. */
export function oneLeftFree(jobs: number): FairPoolLimits {
  return { jobs, jobsPerTenant: Math.max(1, jobs - 1) }
}

export interface PoolPlace {
  /** Stands in this tenant's line too. */
  alsoFor(tenantId: string): void
  /** Leaves all lines; a job that has started goes on. */
  cancel(): void
}

interface Job {
  started: boolean
  start: () => Promise<void>
}

export class FairPool {
  readonly #limits: FairPoolLimits
  /** Lines in the order of their next turn; a tenant without a line has nothing waiting. */
  readonly #lines = new Map<string, Job[]>()
  readonly #runningByTenant = new Map<string, number>()
  #running = 0

  constructor(limits: FairPoolLimits) {
    this.#limits = limits
  }

  /** `start` must not throw; its promise says when the place is free again. */
  enqueue(tenantId: string, start: () => Promise<void>): PoolPlace {
    const job: Job = { started: false, start }
    const stand = (tenant: string) => {
      const line = this.#lines.get(tenant) ?? []
      if (!job.started && !line.includes(job)) {
        line.push(job)
        this.#lines.set(tenant, line)
      }
    }
    stand(tenantId)
    this.#fill()
    return {
      alsoFor: (tenant) => {
        stand(tenant)
        this.#fill()
      },
      cancel: () => {
        // Lines drop jobs that count as started when they come up; till then this one keeps nothing in memory.
        job.started = true
        job.start = async () => {}
      },
    }
  }

  #fill(): void {
    while (this.#running < this.#limits.jobs) {
      const next = this.#next()
      if (next === undefined) {
        return
      }
      this.#run(next.tenant, next.job)
    }
  }

  /** Of those who may run something the tenant with least running, between equals the first in turn; he goes to the end. */
  #next(): { tenant: string; job: Job } | undefined {
    let best: { tenant: string; line: Job[]; running: number } | undefined
    for (const [tenant, line] of [...this.#lines]) {
      while (line[0]?.started) {
        line.shift()
      }
      const running = this.#runningByTenant.get(tenant) ?? 0
      if (line.length === 0) {
        this.#lines.delete(tenant)
      } else if (running < Math.min(this.#limits.jobsPerTenant, best?.running ?? Number.POSITIVE_INFINITY)) {
        best = { tenant, line, running }
      }
    }
    if (best === undefined) {
      return undefined
    }
    const { tenant, line } = best
    const job = line.shift()!
    this.#lines.delete(tenant)
    if (line.length > 0) {
      this.#lines.set(tenant, line)
    }
    return { tenant, job }
  }

  #run(tenant: string, job: Job): void {
    job.started = true
    this.#running++
    this.#runningByTenant.set(tenant, (this.#runningByTenant.get(tenant) ?? 0) + 1)
    void job.start().finally(() => {
      this.#running--
      const left = this.#runningByTenant.get(tenant)! - 1
      if (left === 0) {
        this.#runningByTenant.delete(tenant)
      } else {
        this.#runningByTenant.set(tenant, left)
      }
      this.#fill()
    })
  }
}
