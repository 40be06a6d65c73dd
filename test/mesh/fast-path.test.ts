import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Lab } from '../lab/lab.ts'
import { LineProcess } from './helpers.ts'

const port = '8080'
const routes = [
  { route: 'direct', service: 'edge' },
  { route: 'relayed', service: 'cloud' },
  { route: 'plain', service: 'plain' },
] as const

describe.each(['random', 'always', 'never'] as const)('with the fast path %s', (fastPath) => {
  let lab: Lab

  beforeAll(async () => {
    lab = await Lab.up({
      environment: { EDGEMESH_FAST_PATH: fastPath },
      serverOptions: ['--fast-path', fastPath],
    })
    await lab.addPod({ name: 'plain', node: 'mkedge2', sidecar: false })
    lab.setService('plain', ['plain'], [Number(port)])
    for (const pod of ['tcp-echo-edge', 'tcp-echo-cloud', 'plain'])
      await new LineProcess(lab, pod, lab.node('test/conformance/server.ts', '::', port)).next()
  })

  afterAll(() => lab?.down())

  async function metric(name: string): Promise<number> {
    const metrics = await lab.admin('client', '/metrics')
    const values = [...metrics.matchAll(new RegExp(`^edgemesh_${name} (\\d+)$`, 'gm'))].map((m) =>
      Number(m[1]),
    )
    return values.reduce((sum, value) => sum + value, 0)
  }

  it.each(routes)(
    'bytes are exact on the $route route, under half-closes and resets at any moment',
    async ({ service }) => {
      const argv = lab.node('test/conformance/client.ts', 'stress', service, port, '20261124', '120')
      const { code, stdout, stderr } = await lab.run('client', argv, { timeoutMs: 120_000 })
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
      const { outcomes, failures } = JSON.parse(stdout)
      expect(failures).toEqual([])
      expect(outcomes.ended).toBeGreaterThan(30)
      expect(outcomes.reset).toBeGreaterThan(10)
      expect(outcomes['broken here']).toBeGreaterThan(10)
    },
    130_000,
  )

  it('was what carried them, or was not', async () => {
    const used = {
      moved: await metric('side_connections_total\\{side="dialer",outcome="moved"\\}'),
      lanes: await metric('lanes_total\\{side="dialer",outcome="up"\\}'),
      carried: await metric('express_connections_total\\{outcome="carried"\\}'),
    }
    if (fastPath === 'never') expect(used).toEqual({ moved: 0, lanes: 0, carried: 0 })
    else for (const [what, count] of Object.entries(used)) expect([what, count > 0]).toEqual([what, true])
  })

  it('keeps nothing of what has ended', async () => {
    await expect.poll(() => metric('pump_connections'), { timeout: 60_000 }).toBe(0)
    expect(await metric('pump_descriptors')).toBeLessThanOrEqual(64) // the pool of pipes
    const status = JSON.parse(await lab.admin('client', '/status'))
    expect(status.connections).toBe(0)
  })
})
