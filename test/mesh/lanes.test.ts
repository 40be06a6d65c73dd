import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Lab } from '../lab/lab.ts'
import { client, echoes, LineProcess, lastAccess, logOf, metric, startServer } from './helpers.ts'

const port = 8080
const patient = { timeout: 60_000 }
const webs = ['web-a', 'web-b']
let lab: Lab

beforeAll(async () => {
  lab = await Lab.up()
  for (const name of webs) await lab.addPod({ name, node: 'mkedge2' })
  for (const pod of [...webs, 'tcp-echo-edge', 'tcp-echo-cloud']) await startServer(lab, pod)
  lab.setService('web', webs, [port])
})

afterAll(() => lab?.down())

const carried = () => metric(lab, 'client', 'edgemesh_express_connections_total{outcome="carried"}')

/** Echoes until one has gone by a lane: by IPv4, as names would take turns between the families. */
async function untilByLane(address: string): Promise<void> {
  const before = await carried()
  const more = async () => {
    return (await echoes(lab, address)) ? carried() : 0
  }
  await expect.poll(more, patient).toBeGreaterThan(before)
}

const addressOf = (service: string) => lab.services.find((s) => s.name === service)?.clusterIPs[0] ?? ''

async function started(host: string, kind: string): Promise<LineProcess> {
  const process = new LineProcess(
    lab,
    'client',
    lab.node('test/conformance/client.ts', kind, host, String(port)),
  )
  if (kind === 'steady-one-connection')
    await new Promise((resolve) => process.process.stderr?.once('data', resolve))
  return process
}

/** Runs test/mesh/lane-peer.ts in the client's pod: a peer of the edge pod that speaks the protocol itself. */
async function peer(what: string, ...authorities: string[]): Promise<Record<string, unknown>> {
  const { uid, ips } = lab.pod('tcp-echo-edge')
  const ca = join(lab.folder, 'server')
  const options = ['--ca', ca, '--uid', lab.pod('client').uid, '--to', ips[0], '--expect', uid]
  const asked = authorities.flatMap((a) => ['--authority', a])
  const argv = lab.node('test/mesh/lane-peer.ts', what, ...options, ...asked)
  const { stdout, stderr } = await lab.run('client', argv, { timeoutMs: 60_000 })
  if (stdout === '') throw new Error(stderr)
  return JSON.parse(stdout)
}

describe.each([
  ['direct', 'edge', 'tcp-echo-edge'],
  ['relayed', 'cloud', 'tcp-echo-cloud'],
])('connections by the %s route', (route, service, pod) => {
  it('go by a lane after the first, and both sides say what they were', async () => {
    await untilByLane(addressOf(service))
    const before = await carried()
    const more = async () => {
      expect(await client(lab, 'client-fin-first', addressOf(service), port)).toEqual({ correct: true })
      return carried()
    }
    // Now and then one is left to the main thread, where a better route than the lane's may be found.
    await expect.poll(more, patient).toBeGreaterThan(before)
    const { ips, uid } = lab.pod(pod)
    const answer = { closeReason: 'closed', bytesSent: 100_005, bytesReceived: 72 }
    expect(await lastAccess(lab, 'client')).toMatchObject({
      ...answer,
      route,
      service: `default/${service}:${port}`,
      endpoint: `${ips[0]}:${port}`,
      podUid: uid,
    })
    const inbound = async () => (await logOf(lab, pod)).filter((l) => l.direction === 'inbound').at(-1)
    await expect.poll(inbound, patient).toMatchObject({
      closeReason: 'closed',
      destination: `${ips[0]}:${port}`,
      route: 'inbound',
      bytesSent: 72,
      bytesReceived: 100_005,
      peer: expect.stringContaining(lab.pod('client').uid),
    })
  })
})

describe('an authenticated peer that speaks the protocol itself', () => {
  const ip = () => lab.pod('tcp-echo-edge').ips[0]

  it('gets a declared port of the pod, and nothing else', async () => {
    const [good, ...bad] = [
      `${ip()}:8080`,
      `${ip()}:22`,
      `${ip()}:20006`,
      '127.0.0.1:8080',
      '10.244.3.2:8080',
    ]
    const line = 'edgemesh_inbound_refused_total{reason="forbidden"}'
    const before = await metric(lab, 'tcp-echo-edge', line)
    const answers = { [good ?? '']: 'closed', ...Object.fromEntries(bad.map((a) => [a, 'forbidden'])) }
    expect(await peer('open', good ?? '', ...bad)).toEqual({ answers })
    await expect.poll(() => metric(lab, 'tcp-echo-edge', line), patient).toBe(before + bad.length)
  })

  it.each([
    ['is malformed', ['malformed'], () => []],
    ['is more than the window', ['window'], () => [`${ip()}:8080`]],
    ['asks for what is forbidden, again and again', ['flood'], () => [`${ip()}:22`]],
    ['is half a handshake, or none', ['half', 'silent'], () => []],
  ])(
    'is cut off when what it sends %s, and others are not',
    async (_title, floods, authorities) => {
      await untilByLane(addressOf('edge'))
      const open = await started(addressOf('edge'), 'steady-one-connection')
      const ends = await Promise.all(floods.map((what) => peer(what, ...authorities())))
      expect(ends).toEqual(floods.map(() => ({ ended: true })))
      expect(await open.finish()).toMatchObject({ lived: true })
      await expect.poll(() => metric(lab, 'tcp-echo-edge', 'edgemesh_express_connections '), patient).toBe(0)
    },
    90_000,
  )
})

describe('when what a lane needs goes away', () => {
  it('a sidecar that is killed resets the streams of its lanes, and later connections work again', async () => {
    await untilByLane(addressOf('edge'))
    const open = await started(addressOf('edge'), 'steady-one-connection')
    await lab.stopSidecar('tcp-echo-edge', 'KILL')
    expect(await open.next()).toMatchObject({ lived: false })
    await lab.startSidecar('tcp-echo-edge')
    await untilByLane(addressOf('edge'))
  })

  it('a server that is killed ends relayed lanes, and connections go on by the next one', async () => {
    await untilByLane(addressOf('cloud'))
    await lab.stopServer('KILL')
    await lab.startServer()
    await untilByLane(addressOf('cloud'))
    expect(await lastAccess(lab, 'client')).toMatchObject({ route: 'relayed', closeReason: 'closed' })
  })

  it('a rolling restart of the far sidecars fails no connection', async () => {
    await untilByLane(addressOf('web'))
    const load = await started(addressOf('web'), 'steady-new-connections')
    for (const name of webs) {
      await lab.stopSidecar(name)
      expect((await logOf(lab, name)).map((l) => l.msg)).not.toContain('a part did not stop cleanly')
      await lab.startSidecar(name)
      const before = await carried()
      await expect.poll(carried, patient).toBeGreaterThan(before + 20)
    }
    expect((await load.finish()).failures).toEqual([])
  })
})
