import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import type { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { LaneKeeper } from '../../../sidecar/express/lane-keeper.ts'
import type { ExpressOrder, LaneRoute } from '../../../sidecar/express/messages.ts'
import { CertificateAuthority } from '../../../sidecar/shared/authority/certificate-authority.ts'
import { close } from '../../../sidecar/shared/pump/libc.ts'
import { createKeyPair } from '../../../sidecar/shared/tls.ts'
import { SidecarMetrics } from '../../../sidecar/sidecar-metrics.ts'
import { lanePreamble, ready } from '../../../sidecar/tunnel/side.ts'
import { tcpPair } from '../shared/tcp.ts'

const trustDomain = 'cluster.local'
const certificates: Record<string, Uint8Array> = {}
let orders: ExpressOrder[]
let keeper: LaneKeeper
let hasWorker: boolean
let now: number

beforeAll(async () => {
  const folder = mkdtempSync(join(tmpdir(), 'keeper-'))
  const authority = await CertificateAuthority.open(folder, trustDomain)
  for (const podUid of ['far', 'other']) {
    const { publicKey } = await createKeyPair()
    const identity = { trustDomain, namespace: 'default', serviceAccount: 'default', podUid }
    certificates[podUid] = new X509Certificate((await authority.issue(identity, publicKey, 60_000)).chain).raw
  }
  return () => rmSync(folder, { recursive: true })
})

beforeEach(() => {
  orders = []
  hasWorker = true
  now = 1_000
  keeper = new LaneKeeper({
    trustDomain,
    ready: async () => hasWorker,
    own: () => hasWorker,
    tell: (order) => {
      orders.push(order)
      if (order.type === 'lane') close(order.lane.fd)
    },
    metrics: new SidecarMetrics(),
    log: pino({ level: 'silent' }),
    now: () => now,
  })
  return () => keeper.onExit()
})

const types = () => orders.map(({ type }) => type)

/** Dials a peer that says it is ready, until the worker is given the lane; `before` is called when it has been asked. */
async function ensure(
  podUid: string,
  before: (far: Socket) => void = () => undefined,
  route: LaneRoute = 'direct',
): Promise<boolean> {
  let dialled = false
  let settled = false
  const lanes = () => orders.filter((o) => o.type === 'lane').length
  const given = lanes()
  const ensured = keeper.ensure(podUid, route, async () => {
    dialled = true
    const [near, far] = await tcpPair()
    far.once('data', (asked) => {
      expect(asked).toEqual(lanePreamble)
      before(far)
      far.end(ready)
    })
    return near
  })
  void ensured.then(() => {
    settled = true
  })
  // Where there is a lane already, it waits for that one to come up.
  for (let i = 0; !settled && lanes() === given && (dialled || i < 10); i++)
    await new Promise((resolve) => setImmediate(resolve))
  return dialled
}

/** A peer's lane up to where its certificate has been seen. */
async function take(podUid: string): Promise<void> {
  const [near, far] = await tcpPair()
  await keeper.take(near, 'direct', () => undefined)
  await once(far.resume(), 'end')
  far.destroy()
  named(podUid)
}

function named(podUid: string): void {
  const last = orders.findLast((o) => o.type === 'lane')
  const id = last?.type === 'lane' ? last.lane.id : -1
  keeper.onReport({ type: 'named', id, certificate: certificates[podUid] ?? Buffer.alloc(0) })
}

describe('a lane to a peer', () => {
  it('is made once, and again when that one takes no more or is over', async () => {
    expect([await ensure('far'), await ensure('far')]).toEqual([true, false])
    named('far')
    expect(types()).toEqual(['lane', 'accept'])
    keeper.onReport({ type: 'up', id: 1 })
    keeper.onReport({ type: 'retired', id: 1 })
    expect(await ensure('far')).toBe(true)
    expect(keeper.size).toBe(2)
    keeper.onReport({ type: 'up', id: 2 })
    now += 60_000
    keeper.onReport({ type: 'over', id: 2, error: 'it broke' })
    expect(await ensure('far')).toBe(true)
  })

  it('that ends as soon as it is made is made again ever more rarely, until one lasts', async () => {
    /** Makes lanes that live for so long, and gives the longest time that none could be made after one, in ms. */
    const restAfter = async (livesMs: number) => {
      const id = orders.findLast((o) => o.type === 'lane')?.lane.id ?? 0
      keeper.onReport({ type: 'up', id })
      now += livesMs
      keeper.onReport({ type: 'over', id, error: 'it ended' })
      for (const from = now; ; now += 250) if (await ensure('far')) return now - from
    }
    await ensure('far')
    const rests: number[] = []
    for (let i = 0; i < 8; i++) rests.push(await restAfter(10))
    for (const [i, rest] of rests.entries()) {
      expect(rest).toBeGreaterThanOrEqual(500)
      expect(rest).toBeLessThanOrEqual(500 + Math.min(60_000, 1_000 * 2 ** i) + 250)
    }
    expect(await restAfter(60_000)).toBe(0)
    expect(await restAfter(10)).toBeLessThanOrEqual(1_750)
  })

  it('rests on its own route only', async () => {
    await ensure('far', () => undefined, 'relayed')
    keeper.onReport({ type: 'up', id: 1 })
    keeper.onReport({ type: 'over', id: 1, error: 'it ended' })
    expect(await ensure('far', () => undefined, 'relayed')).toBe(false)
    expect(await ensure('far')).toBe(true)
  })

  it('is refused when another pod answers there, and is not tried again at once', async () => {
    await ensure('far')
    named('other')
    expect(types()).toEqual(['lane', 'refuse'])
    keeper.onReport({ type: 'over', id: 1, error: 'its peer is another' })
    expect(await ensure('far')).toBe(false)
  })

  it('is not kept when the worker has died while it was made, nor any that the worker had', async () => {
    await ensure('other')
    await ensure('far', () => {
      hasWorker = false
      keeper.onExit()
    })
    expect(keeper.size).toBe(0)
    expect(types()).toEqual(['lane'])
    hasWorker = true
    expect(await ensure('other')).toBe(true)
  })

  it('takes no new streams once a better route serves the peer, even before there is a lane by that', async () => {
    expect(await ensure('far', () => undefined, 'relayed')).toBe(true)
    keeper.onReport({ type: 'up', id: 1 })
    expect(await ensure('far', () => undefined, 'punched')).toBe(true)
    expect(orders.filter((o) => o.type === 'leave')).toEqual([{ type: 'leave', id: 1 }])
    keeper.onReport({ type: 'up', id: 2 })
    expect(await ensure('far', () => undefined, 'relayed')).toBe(false)
    expect(orders.filter((o) => o.type === 'leave')).toHaveLength(1)
  })

  it('is not made by a pod that is stopping', async () => {
    keeper.drain()
    expect(await ensure('far')).toBe(false)
  })
})

describe('a lane of a peer', () => {
  it('is taken when it is a pod of the mesh, up to eight of each', async () => {
    for (let i = 0; i < 9; i++) await take('far')
    await take('other')
    const answers = types().filter((type) => type !== 'lane')
    expect(answers).toEqual([...Array(8).fill('accept'), 'refuse', 'accept'])
  })

  it('is refused when nobody can tell whose it is', async () => {
    await take('nobody')
    expect(types()).toEqual(['lane', 'refuse'])
  })

  it('is not taken by a pod that is stopping, or that has no worker', async () => {
    hasWorker = false
    await take('far')
    hasWorker = true
    keeper.drain()
    await take('far')
    expect(types()).toEqual([])
  })
})
