import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { peerLimits } from '../../sidecar/tunnel/peer-limits.ts'
import { Lab } from '../lab/lab.ts'
import { serverAddress } from '../lab/topology.ts'
import { LineProcess, metric, startServer } from './helpers.ts'

let lab: Lab
/** Traffic of another pod, each byte compared: to the pod that is flooded directly, and through the relay. */
let loads: LineProcess[]

type Traffic = { good: Record<string, number>; failed: number; failures: string[] }

async function ask(load: LineProcess, command: 'count' | 'stop'): Promise<Traffic> {
  load.process.stdin?.write(`${JSON.stringify(command)}\n`)
  return (await load.next()) as unknown as Traffic
}

/** Resolves once every load has had so many more new connections and long exchanges than now. */
async function untilTheyGoOn(): Promise<void> {
  const done = async () => Promise.all(loads.map(async (load) => (await ask(load, 'count')).good))
  const before = await done()
  await vi.waitFor(
    async () => {
      for (const [i, now] of (await done()).entries())
        for (const kind of ['new', 'both'])
          expect(now[kind]).toBeGreaterThan((before[i]?.[kind] ?? 0) + (kind === 'new' ? 20 : 3))
    },
    { timeout: 60_000, interval: 200 },
  )
}

/** Starts a flood in the hostile pod; resolves with what it has reached. */
async function flood(kind: string): Promise<{ reached: Record<string, unknown>; end(): void }> {
  const target = lab.pod(kind === 'joins' || kind === 'control' ? 'tcp-echo-cloud' : 'tcp-echo-edge')
  const { uid } = lab.pod('hostile')
  const [replica] = lab.replicas
  const args = [
    ...[
      '--ca',
      join(lab.folder, 'server'),
      '--uid',
      uid,
      '--to',
      target.ips[0] ?? '',
      '--expect',
      target.uid,
    ],
    ...['--server', `${serverAddress}:${replica?.port}`, '--token', join(lab.folder, 'pods/hostile/token')],
    ...['--bundle', join(lab.folder, 'server/ca.crt')],
  ]
  const hostile = new LineProcess(lab, 'hostile', lab.node('test/mesh/flood.ts', kind, ...args))
  return { reached: await hostile.next(), end: () => void hostile.process.stdin?.write('end\n') }
}

/** What the process keeps in memory, in MiB. */
async function anonymousMib(part: string): Promise<number> {
  const rollup = await readFile(`/proc/${lab.pidOf(part)}/smaps_rollup`, 'utf8')
  return Number(/^Anonymous:\s+(\d+) kB/m.exec(rollup)?.[1]) / 1_024
}

beforeAll(async () => {
  lab = await Lab.up()
  await lab.addPod({ name: 'hostile', node: 'mkedge2' })
  await lab.stopSidecar('hostile') // the flood has its place, with its certificate and token
  await startServer(lab, 'tcp-echo-edge')
  await startServer(lab, 'tcp-echo-cloud')
  loads = ['edge', 'cloud'].map(
    (to, i) => new LineProcess(lab, 'client', lab.node('test/soak/load.ts', to, '8080', String(1 + i))),
  )
  await untilTheyGoOn()
})

afterAll(async () => {
  await lab?.down()
})

describe('while a sidecar floods, the connections of another go on with right bytes', () => {
  it('and it has so many streams and sessions, no more: the others are refused by a code', async () => {
    const { reached, end } = await flood('streams')
    expect(reached.sessions).toBe(peerLimits.sessionsOfPeer)
    expect(reached.counts).toEqual({
      200: peerLimits.streamsOfPeer,
      429: peerLimits.sessionsOfPeer * 100 - peerLimits.streamsOfPeer,
    })
    await untilTheyGoOn()
    end()
    const refused = 'edgemesh_inbound_refused_total{reason="limit"}'
    expect(await metric(lab, 'tcp-echo-edge', refused)).toBeGreaterThan(0)
  })

  it('and what it does not read is bounded', async () => {
    const { reached, end } = await flood('unread')
    expect(reached).toEqual({ status: 429 })
    await untilTheyGoOn()
    expect(await anonymousMib('tcp-echo-edge')).toBeLessThan(256)
    end()
  })

  it('and it loses its session when it opens and resets streams without end', async () => {
    const refused = 'edgemesh_handshake_failures_total{direction="inbound",reason="limit"}'
    const before = await metric(lab, 'tcp-echo-edge', refused)
    const { reached, end } = await flood('resets')
    await untilTheyGoOn()
    end()
    expect(reached.ended).toBe(true)
    expect(Number(reached.opened), 'before Node itself has had enough').toBeLessThan(20_000)
    expect(await metric(lab, 'tcp-echo-edge', refused)).toBeGreaterThan(before)
  })

  it('and its handshakes that do not go on are bounded', async () => {
    const refused = 'edgemesh_handshake_failures_total{direction="inbound",reason="limit"}'
    const before = await metric(lab, 'tcp-echo-edge', refused)
    const { reached, end } = await flood('handshakes')
    await untilTheyGoOn()
    end()
    const { unprovenOfOne } = peerLimits
    expect(await metric(lab, 'tcp-echo-edge', refused)).toBeGreaterThan(before)
    expect((await metric(lab, 'tcp-echo-edge', refused)) - before).toBeLessThanOrEqual(
      Number(reached.tried) - unprovenOfOne,
    )
  })

  it('and its control messages end its own channel', async () => {
    const { reached, end } = await flood('control')
    expect(reached.up).toBe(false)
    await untilTheyGoOn()
    end()
    expect(await metric(lab, 'mkmaster1', 'edgemesh_control_refusals_total{reason="limit"}')).toBeGreaterThan(
      0,
    )
  })

  it('and the joins that it asks for and does not come to are bounded', async () => {
    const { reached, end } = await flood('joins')
    expect(reached).toEqual({ asked: 180, ticket: 128, limit: 52, other: 0 })
    await untilTheyGoOn()
    end()
  })

  it('and none of them has failed', async () => {
    for (const load of loads) expect(await ask(load, 'stop')).toMatchObject({ failed: 0, failures: [] })
  })
})
