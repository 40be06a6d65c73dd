import { join } from 'node:path'
import { defineConfig } from 'vitest/config'

export default defineConfig({
  root: join(import.meta.dirname, '..', '..'),
  test: {
    include: ['test/cluster/**/*.test.ts'],
    fileParallelism: false,
    testTimeout: 120_000,
    // The first run on a machine builds Kubernetes.
    hookTimeout: 40 * 60_000,
    reporters: ['default', './test/closing-line.ts'],
  },
})
