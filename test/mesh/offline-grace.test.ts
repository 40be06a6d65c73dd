import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Lab } from '../lab/lab.ts'
import { echoes, lastAccess, logOf, metric, startServer } from './helpers.ts'

const lifeMs = 20_000
let lab: Lab

beforeAll(async () => {
  lab = await Lab.up({
    serverOptions: ['--leaf-lifetime', `${lifeMs / 1_000}s`],
    environment: { EDGEMESH_OFFLINE_GRACE: '1h', EDGEMESH_IDENTITY_DIR: '{state}/identity' },
  })
  await startServer(lab, 'tcp-echo-edge')
})

afterAll(async () => {
  await lab?.down()
})

async function status(pod: string): Promise<{ server: { up: boolean }; certificate: { notAfter: string } }> {
  return JSON.parse(await lab.admin(pod, '/status'))
}

const hasExpired = async (pod: string) => Date.parse((await status(pod)).certificate.notAfter) < Date.now()

/** A tunnel client with a certificate of our choice at the endpoint of tcp-echo-edge; see peer.ts. */
async function peer(...how: string[]): Promise<Record<string, unknown>> {
  const { uid, ips } = lab.pod('tcp-echo-edge')
  const who = how.includes('--ca') ? [] : ['--ca', join(lab.folder, 'server')]
  const target = [
    '--uid',
    lab.pod('client').uid,
    '--to',
    ips[0],
    '--expect',
    uid,
    '--authority',
    `${ips[0]}:8080`,
  ]
  const { stdout, stderr } = await lab.run('client', lab.node('test/mesh/peer.ts', ...who, ...target, ...how))
  if (stdout === '') throw new Error(stderr)
  return JSON.parse(stdout)
}

const refused = (reason: string) =>
  metric(lab, 'tcp-echo-edge', `edgemesh_handshake_failures_total{direction="inbound",reason="${reason}"}`)

describe('an offline grace', () => {
  it('is of no use to an expired certificate while the server is there', async () => {
    const before = await refused('expired')
    expect(await peer()).toEqual({ status: 200 })
    expect(await peer('--life=-1000')).toHaveProperty('refused')
    expect(await refused('expired')).toBe(before + 1)
  })

  it('lets a site go on whose certificates have all expired, through restarts of its sidecars', async () => {
    expect(await echoes(lab, 'edge')).toBe(true)
    await lab.stopServer('KILL')
    for (const pod of ['client', 'tcp-echo-edge'])
      await expect.poll(() => hasExpired(pod), { timeout: 2 * lifeMs, interval: 500 }).toBe(true)
    await lab.stopSidecar('tcp-echo-edge', 'KILL')
    await lab.startSidecar('tcp-echo-edge')
    expect(await echoes(lab, 'edge')).toBe(true)
    expect(await lastAccess(lab, 'client')).toMatchObject({ route: 'direct', closeReason: 'closed' })
    await lab.stopSidecar('client')
    await lab.startSidecar('client')
    expect(await echoes(lab, 'edge')).toBe(true)
    for (const pod of ['client', 'tcp-echo-edge'])
      expect(await metric(lab, pod, 'edgemesh_offline_grace_sessions')).toBe(1)
  })

  it.each<[string, string[], string]>([
    ['of another CA', ['--ca', 'foreign', '--life=-1000'], 'expired'],
    ['of another trust domain', ['--domain', 'elsewhere.local', '--life=-1000'], 'wrong-identity'],
    ['that expired before the server went away', ['--life=-3600000'], 'expired'],
    ['at all', ['--none', 'yes'], 'no-certificate'],
  ])('refuses all others as ever: no certificate, or an expired one, %s', async (_title, how, reason) => {
    const before = await refused(reason)
    const args = how.map((a) => (a === 'foreign' ? join(lab.folder, 'foreign') : a))
    expect(await peer(...args)).toHaveProperty('refused')
    await expect.poll(() => refused(reason)).toBe(before + 1)
    expect((await logOf(lab, 'tcp-echo-edge')).at(-1)).toMatchObject({ msg: 'refused a peer', reason })
  })

  it('takes one that expired after the server went away', async () => {
    expect(await peer('--life=-1000')).toEqual({ status: 200 })
  })

  it('ends when the server is back: sessions by grace are closed, and certificates renewed', async () => {
    await lab.startServer()
    for (const pod of ['client', 'tcp-echo-edge']) {
      await expect.poll(async () => (await status(pod)).server.up, { timeout: 60_000 }).toBe(true)
      await expect.poll(() => metric(lab, pod, 'edgemesh_offline_grace_sessions')).toBe(0)
    }
    expect(await echoes(lab, 'edge')).toBe(true)
    const before = await refused('expired')
    expect(await peer('--life=-1000')).toHaveProperty('refused')
    expect(await refused('expired')).toBe(before + 1)
  })
})
