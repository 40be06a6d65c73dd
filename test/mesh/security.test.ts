import { randomUUID } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Lab } from '../lab/lab.ts'
import { echoes, lastAccess, logOf, metric, startServer } from './helpers.ts'

let lab: Lab

/** Runs test/mesh/peer.ts in a pod: a tunnel client with a certificate of our choice. */
async function peer(...args: string[]): Promise<Record<string, unknown>> {
  const { stdout, stderr } = await lab.run('client', lab.node('test/mesh/peer.ts', ...args), {
    timeoutMs: 90_000,
  })
  if (stdout === '') throw new Error(stderr)
  return JSON.parse(stdout)
}

beforeAll(async () => {
  lab = await Lab.up()
  await startServer(lab, 'tcp-echo-edge')
  await startServer(lab, 'tcp-echo-cloud')
})

afterAll(async () => {
  await lab?.down()
})

describe('the tunnel endpoint', () => {
  const target = () => lab.pod('tcp-echo-edge')
  const foreignCa = () => join(lab.folder, 'foreign')

  it('serves a peer of this mesh at a declared port', async () => {
    const { uid, ips } = target()
    const from = [
      '--ca',
      join(lab.folder, 'server'),
      '--uid',
      lab.pod('client').uid,
      '--to',
      ips[0],
      '--expect',
      uid,
    ]
    expect(await peer(...from, '--authority', `${ips[0]}:8080`)).toEqual({ status: 200 })
  })

  it.each([
    ['another port of the pod', (ip: string) => `${ip}:22`],
    ['the sidecar itself', (ip: string) => `${ip}:20006`],
    ['loopback', () => '127.0.0.1:8080'],
    ['another pod', () => '10.244.3.2:8080'],
  ])('dials nothing but its declared ports: not %s', async (_title, authority) => {
    const { uid, ips } = target()
    const from = [
      '--ca',
      join(lab.folder, 'server'),
      '--uid',
      lab.pod('client').uid,
      '--to',
      ips[0],
      '--expect',
      uid,
    ]
    expect(await peer(...from, '--authority', authority(ips[0]))).toEqual({ status: 401 })
    expect(
      await metric(lab, 'tcp-echo-edge', 'edgemesh_inbound_refused_total{reason="forbidden"}'),
    ).toBeGreaterThan(0)
  })

  it.each([
    ['of another CA', ['--foreign', 'yes'], 'untrusted'],
    ['of another trust domain', ['--domain', 'elsewhere.local'], 'wrong-identity'],
    ['that has expired', ['--life=-60000'], 'expired'],
    ['at all', ['--none', 'yes'], 'no-certificate'],
  ])(
    'refuses a peer without a certificate, or with one %s, with a metric and a log line',
    async (_title, how, reason) => {
      const { uid, ips } = target()
      const line = `edgemesh_handshake_failures_total{direction="inbound",reason="${reason}"}`
      const before = await metric(lab, 'tcp-echo-edge', line)
      const ca = how[0] === '--foreign' ? foreignCa() : join(lab.folder, 'server')
      const from = ['--ca', ca, '--uid', lab.pod('client').uid, '--to', ips[0], '--expect', uid]
      expect(await peer(...from, '--authority', `${ips[0]}:8080`, ...how)).toHaveProperty('refused')
      await expect.poll(() => metric(lab, 'tcp-echo-edge', line)).toBe(before + 1)
      expect((await logOf(lab, 'tcp-echo-edge')).at(-1)).toMatchObject({ msg: 'refused a peer', reason })
    },
  )
})

describe('the dialling side', () => {
  it('never reaches the same pod IP at another site', async () => {
    // Both pods have 10.244.2.9: one at the edge, beside the client, one in the cloud. Only the cloud one is meant.
    await lab.addPod({ name: 'twin-edge', node: 'mkedge2', ip: '10.244.2.9' })
    await lab.addPod({ name: 'twin-cloud', node: 'mkworker3', ip: '10.244.2.9' })
    await startServer(lab, 'twin-edge')
    await startServer(lab, 'twin-cloud')
    lab.setService('twin', ['twin-cloud'], [8080])
    lab.setService('other-twin', ['twin-edge'], [8080])
    await expect.poll(() => echoes(lab, 'other-twin'), { timeout: 60_000 }).toBe(true)
    await expect.poll(() => echoes(lab, 'twin'), { timeout: 60_000 }).toBe(true)
    expect(await lastAccess(lab, 'client')).toMatchObject({
      podUid: lab.pod('twin-cloud').uid,
      route: 'relayed',
    })
    const wrong = (await logOf(lab, 'twin-edge')).filter(
      (l) => l.msg === 'connection' && l.closeReason === 'closed',
    )
    expect(wrong).toHaveLength(1) // the one of other-twin
  })

  it('refuses a peer that is another pod than the one dialled, with a metric and a log line', async () => {
    const refused = (await logOf(lab, 'client')).filter((l) => l.msg === 'refused a peer')
    expect(refused).not.toHaveLength(0)
    expect(refused[0]).toMatchObject({ podUid: lab.pod('twin-cloud').uid, reason: 'wrong-identity' })
    const line = 'edgemesh_handshake_failures_total{direction="outbound",reason="wrong-identity"}'
    expect(await metric(lab, 'client', line)).toBeGreaterThan(0)
  })
})

describe('a pod without a valid token', () => {
  it.each([
    ['for another audience', { aud: ['kubernetes'] }],
    ['that has expired', { exp: Math.floor(Date.now() / 1_000) - 3_600 }],
    [
      'of a pod that the catalogue does not know',
      {
        'kubernetes.io': {
          namespace: 'default',
          pod: { name: 'x', uid: randomUUID() },
          serviceaccount: { name: 'default' },
        },
      },
    ],
  ])('gets no certificate: a token %s', async (_title, claims) => {
    await lab.stopSidecar('client')
    const token = join(lab.folder, 'pods/client/token')
    await writeFile(token, await lab.token(lab.pod('client'), claims))
    await lab.startSidecar('client', { identified: false })
    await expect
      .poll(async () => (await logOf(lab, 'client')).at(-1)?.msg, { timeout: 60_000 })
      .toBe('lost the server')
    expect(await lab.admin('client', '/readyz')).toContain('not ready: identity')
    await lab.stopSidecar('client')
    await writeFile(token, await lab.token(lab.pod('client')))
    await lab.startSidecar('client')
    expect(await echoes(lab, 'edge')).toBe(true)
  })
})
