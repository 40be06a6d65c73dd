import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    // These need a cluster: npm run test:cluster.
    exclude: ['**/node_modules/**', 'test/cluster/**'],
    // Labs and kernels are shared by nothing, but two cores are: the heavy suites run one at a time.
    fileParallelism: false,
    // Against hanging only: a machine that others starve may be ten times slower than it was a minute ago.
    testTimeout: 180_000,
    hookTimeout: 180_000,
    reporters: ['default', './test/closing-line.ts'],
  },
})
