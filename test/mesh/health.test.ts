import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { Lab } from '../lab/lab.ts'
import { echoes, LineProcess, logOf, metric, startServer } from './helpers.ts'

let lab: Lab
const names = ['web-a', 'web-b', 'web-c']
const apps = new Map<string, LineProcess>()

beforeAll(async () => {
  lab = await Lab.up()
  for (const name of names) await lab.addPod({ name, node: name === 'web-a' ? 'mkedge3' : 'mkedge2' })
  for (const name of names) apps.set(name, await startServer(lab, name))
  lab.setService('web', names, [8080])
  await vi.waitFor(async () => expect(await echoes(lab, 'web')).toBe(true), { timeout: 60_000 })
})

afterAll(async () => {
  await lab?.down()
})

/** Makes new connections to the service, one after the other, until `done`, and all are logged; none of them may fail. */
async function connectUntil(done: () => Promise<boolean>): Promise<void> {
  const before = sum(await served())
  const script = lab.node('test/conformance/client.ts', 'steady-new-connections', 'web', '8080')
  const loop = new LineProcess(lab, 'client', script)
  await expect.poll(done, { timeout: 90_000, interval: 200 }).toBe(true)
  const { good, failures } = await loop.finish()
  expect(failures).toEqual([])
  await expect.poll(async () => sum(await served()) - before, { timeout: 10_000 }).toBe(good)
}

function sum(counts: Record<string, number>): number {
  return Object.values(counts).reduce((all, count) => all + count, 0)
}

/** Connections of the client pod that have ended well, by the pod that served them. */
async function served(): Promise<Record<string, number>> {
  const counts = Object.fromEntries(names.map((name) => [name, 0]))
  for (const line of await logOf(lab, 'client')) {
    const pod = lab.pods.find((p) => p.uid === line.podUid)?.name ?? ''
    if (line.closeReason === 'closed') counts[pod] = (counts[pod] ?? 0) + 1
  }
  return counts
}

/** Whether each of the pods has served so many more than before. */
async function moreThan(before: Record<string, number>, count: number, pods: string[]): Promise<boolean> {
  const now = await served()
  return pods.every((pod) => (now[pod] ?? 0) >= (before[pod] ?? 0) + count)
}

async function retries(): Promise<number> {
  const lines = (await lab.admin('client', '/metrics')).split('\n')
  return lines
    .filter((l) => l.startsWith('edgemesh_retries_total{'))
    .reduce((sum, l) => sum + Number(l.split(' ').at(-1)), 0)
}

const ejected = () => metric(lab, 'client', 'edgemesh_endpoints_ejected')

const link = (state: 'up' | 'down') => {
  const veth = `v${lab.pod('web-b').ips[0].split('.').slice(2).join('-')}`
  return lab.run('mkedge2', ['ip', 'link', 'set', veth, state])
}

describe('a service with three endpoints, one of which dies', () => {
  it.each<[string, () => unknown, () => unknown]>([
    [
      'its app ends',
      () => apps.get('web-b')?.process.kill('SIGKILL'),
      async () => apps.set('web-b', await startServer(lab, 'web-b')),
    ],
    ['its sidecar is killed', () => lab.stopSidecar('web-b', 'KILL'), () => lab.startSidecar('web-b')],
    ['its link goes down', () => link('down'), () => link('up')],
  ])('fails no new connection, hardly dials it, and has it back: %s', async (_title, kill, heal) => {
    const first = await served()
    await connectUntil(() => moreThan(first, 5, names))
    const dead = await served()
    const retried = await retries()
    await kill()
    await connectUntil(async () => (await ejected()) === 1 && (await moreThan(dead, 80, ['web-a', 'web-c'])))
    expect((await served())['web-b']).toBe(dead['web-b'])
    expect((await retries()) - retried).toBeLessThan(16)
    await heal()
    await connectUntil(async () => (await ejected()) === 0 && (await moreThan(dead, 5, ['web-b'])))
  })
})
