import { describe, expect, it } from 'vitest'
import { Lab } from '../lab/lab.ts'
import { metric } from './helpers.ts'

const hour = 3_600_000

/** Has the clock of a process differ by so many ms. */
const clockOffBy = (ms: number) =>
  `--import=data:text/javascript,${encodeURIComponent(`const now = Date.now; Date.now = () => now() + ${ms}`)}`

describe('sidecars whose clocks are wrong', () => {
  // Each in a lab of its own: they wait, mostly.
  it.concurrent.each([
    ['an hour ahead', hour],
    ['an hour behind', -hour],
  ])('renew their certificates as if they were right: %s', async (_title, ms) => {
    const made = await Lab.up({
      serverOptions: ['--leaf-lifetime', '10s'],
      environment: { NODE_OPTIONS: clockOffBy(ms) },
    })
    try {
      const notAfter = async () =>
        Date.parse(JSON.parse(await made.admin('client', '/status')).certificate.notAfter)
      const first = await notAfter()
      await expect.poll(notAfter, { timeout: 60_000, interval: 250 }).toBeGreaterThan(first + 12_000)
      // Three pods have had a first certificate each, and have renewed it two to four times.
      const issued = await metric(made, 'mkmaster1', 'edgemesh_certificates_issued_total')
      expect(issued).toBeGreaterThanOrEqual(3 + 3)
      expect(issued).toBeLessThanOrEqual(3 + 3 * 4)
      expect(await metric(made, 'client', 'edgemesh_control_connects_total{outcome="refused"}')).toBe(0)
    } finally {
      await made.down()
    }
  })
})
