import type { Reporter, TestModule } from 'vitest/node'

/** Ends the run with one plain line, `N passed, N failed`, that scripts can read. */
export default class CountReporter implements Reporter {
  onTestRunEnd(modules: readonly TestModule[]) {
    let passed = 0
    let failed = 0
    let skipped = 0
    for (const module of modules) {
      const results = [...module.children.allTests()].map((test) => test.result().state)
      passed += results.filter((state) => state === 'passed').length
      skipped += results.filter((state) => state === 'skipped').length
      failed += results.filter((state) => state === 'failed').length
      // A file that broke before any of its tests ran counts as one failure.
      if (results.length === 0 && module.state() === 'failed') {
        failed += 1
      }
    }
    console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`)
  }
}
