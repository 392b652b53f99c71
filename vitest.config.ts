import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // Two cores: one file at a time keeps engines from competing for them, and timings of real processes steady.
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 120_000,
    env: { AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED: 'true', WRANGLER_SEND_METRICS: 'false' },
    reporters: ['default', './test/support/count-reporter.ts'],
  },
})
