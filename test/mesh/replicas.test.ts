import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { ports } from '#shared/ports.ts'
import { Lab } from '../lab/lab.ts'
import { client, echoes, LineProcess, lastAccess, metric, place, serverOf, startServer } from './helpers.ts'

let lab: Lab

function steady(service: string, kind = 'steady-new-connections'): LineProcess {
  return new LineProcess(lab, 'client', lab.node('test/conformance/client.ts', kind, service, '8080'))
}

async function ticketsAt(replica: string, outcome: string): Promise<number> {
  const adminPort = lab.replicas.find((r) => r.name === replica)?.adminPort
  const page = await lab.admin('mkmaster1', '/metrics', adminPort)
  return Number(new RegExp(`relay_tickets_total\\{outcome="${outcome}"\\} (\\d+)`).exec(page)?.[1] ?? 0)
}

beforeAll(async () => {
  lab = await Lab.up({ replicas: 2 })
  for (const pod of ['tcp-echo-edge', 'tcp-echo-cloud', 'client']) await startServer(lab, pod)
  lab.setService('back', ['client'], [8080])
})

afterAll(async () => {
  await lab?.down()
})

describe('two pods at different replicas', () => {
  beforeAll(async () => {
    await place(lab, 'client', 'server')
    await place(lab, 'tcp-echo-cloud', 'server-2')
  })

  it('reach each other through the relay, both ways', async () => {
    await expect.poll(() => echoes(lab, 'cloud'), { timeout: 30_000 }).toBe(true)
    expect(await lastAccess(lab, 'client')).toMatchObject({ route: 'relayed', closeReason: 'closed' })
    const back = lab.node('test/conformance/client.ts', 'echo', 'back', '8080')
    const { stdout } = await lab.run('tcp-echo-cloud', back, { timeoutMs: 60_000 })
    expect(JSON.parse(stdout)).toMatchObject({ by: 'end' })
    expect(await ticketsAt('server', 'forwarded')).toBeGreaterThan(0)
    expect(await ticketsAt('server-2', 'forwarded')).toBeGreaterThan(0)
  })

  it('carry bulk with every byte in its place', async () => {
    expect(await client(lab, 'upload', 'cloud', 8080, 30_000_000)).toEqual({ correct: true })
  })
})

describe('when a replica is killed', () => {
  it('its clients go to the other one, and new connections work again', async () => {
    await lab.stopServer('KILL', 'server-2')
    const since = Date.now()
    await expect.poll(() => echoes(lab, 'cloud'), { timeout: 30_000, interval: 10 }).toBe(true)
    console.log(`relayed connections work again ${Date.now() - since} ms after the kill of the replica`)
    expect(await serverOf(lab, 'tcp-echo-cloud')).toBe(ports.server)
    await lab.startServer('server-2')
    await lab.stopServer('KILL', 'server')
    await expect.poll(() => echoes(lab, 'cloud'), { timeout: 30_000, interval: 10 }).toBe(true)
    expect(await serverOf(lab, 'client')).toBe(lab.replicas[1]?.port)
    await lab.startServer('server')
  })
})

describe('when a replica hangs', () => {
  it('its clients notice, and go to the other one', async () => {
    await place(lab, 'client', 'server')
    await lab.stopServer('STOP', 'server')
    await expect.poll(() => echoes(lab, 'cloud'), { timeout: 30_000, interval: 10 }).toBe(true)
    await lab.stopServer('CONT', 'server')
    await expect.poll(() => serverOf(lab, 'client'), { timeout: 30_000 }).toBe(lab.replicas[1]?.port)
  })
})

describe('a rolling restart', () => {
  it('of both replicas fails no new connection', async () => {
    await place(lab, 'client', 'server')
    await place(lab, 'tcp-echo-cloud', 'server-2')
    await expect.poll(() => echoes(lab, 'cloud'), { timeout: 30_000 }).toBe(true)
    const load = steady('cloud')
    for (const { name } of lab.replicas) {
      await lab.stopServer('TERM', name)
      await lab.startServer(name)
    }
    const { good, failures } = await load.finish()
    expect(failures).toEqual([])
    expect(good).toBeGreaterThan(20)
    expect(await metric(lab, 'client', 'edgemesh_route_failures_total{route="relayed",reason="limit"}')).toBe(
      0,
    )
  })
})
