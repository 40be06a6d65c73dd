import { readdir } from 'node:fs/promises'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Lab } from '../lab/lab.ts'
import { echoes, startServer } from './helpers.ts'

let lab: Lab

beforeAll(async () => {
  lab = await Lab.up()
  await startServer(lab, 'tcp-echo-edge')
})

afterAll(async () => {
  await lab?.down()
})

async function descriptors(pod: string): Promise<number> {
  return (await readdir(`/proc/${lab.pidOf(pod)}/fd`)).length
}

describe('malformed bytes by the ten thousand', () => {
  it.each([
    ['the interceptor, from inside the pod', 'client', '127.0.0.1', 40_001],
    ['the interceptor, through the rules', 'client', '10.96.0.11', 2_701],
    ['the tunnel endpoint', 'tcp-echo-edge', '10.244.2.2', 20_006],
    ['the admin port', 'tcp-echo-edge', '10.244.2.2', 20_007],
  ])(
    'at %s neither crash nor hang nor leak',
    async (_title, pod, host, port) => {
      expect(await echoes(lab, 'edge')).toBe(true)
      const pid = lab.pidOf(pod)
      const before = await descriptors(pod)
      const { code, stdout, stderr } = await lab.run(
        'client',
        lab.node('test/mesh/fuzz.ts', host, String(port)),
        { timeoutMs: 120_000 },
      )
      expect(stderr).toBe('')
      expect(code).toBe(0)
      expect(JSON.parse(stdout).inputs).toBeGreaterThanOrEqual(10_000)
      expect(await echoes(lab, 'edge')).toBe(true)
      expect(lab.pidOf(pod)).toBe(pid)
      await expect.poll(() => descriptors(pod), { timeout: 60_000 }).toBeLessThanOrEqual(before + 8)
      expect(JSON.parse(await lab.admin(pod, '/status')).connections).toBe(0)
    },
    120_000,
  )
})
