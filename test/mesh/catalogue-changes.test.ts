import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { Lab } from '../lab/lab.ts'
import { echoes, LineProcess, logOf, startServer } from './helpers.ts'

let lab: Lab

beforeAll(async () => {
  lab = await Lab.up()
  await lab.addPod({ name: 'second', node: 'mkedge2' })
  for (const pod of ['tcp-echo-edge', 'tcp-echo-cloud', 'second']) await startServer(lab, pod)
  lab.setService('web', ['tcp-echo-edge', 'tcp-echo-cloud', 'second'], [8080])
  await vi.waitUntil(() => echoes(lab, 'web'), { timeout: 60_000 })
})

afterAll(async () => {
  await lab?.down()
})

/** Uids of the endpoints that the client's connections to `web` went to, in their order. */
async function endpointsUsed(): Promise<unknown[]> {
  const lines = (await logOf(lab, 'client')).filter(
    (l) => l.msg === 'connection' && l.service === 'default/web:8080',
  )
  return lines.map((l) => l.podUid)
}

describe('the catalogue under traffic', () => {
  it('takes turns over the ready endpoints of a service', async () => {
    const all = ['tcp-echo-edge', 'tcp-echo-cloud', 'second'].map((name) => lab.pod(name).uid)
    // An endpoint that is slow to have its first session rests for a second, so the turns are right only some time later.
    const takesTurns = async () => {
      expect(await echoes(lab, 'web')).toBe(true)
      // So many that some are made in the second in which the main thread looks for a better route than the relay.
      const last = (await endpointsUsed()).slice(-18)
      const isWhole = last.length === 18 && all.every((uid) => last.includes(uid))
      return isWhole && last.every((uid, i) => i < 3 || uid === last[i - 3])
    }
    await vi.waitUntil(takesTurns, { timeout: 60_000 })
  })

  it('changes endpoints without a failed connection', async () => {
    const steady = new LineProcess(
      lab,
      'client',
      lab.node('test/conformance/client.ts', 'steady-new-connections', 'web', '8080'),
    )
    const sets = [
      ['tcp-echo-edge'],
      ['second', 'tcp-echo-cloud'],
      ['second'],
      ['tcp-echo-edge', 'second', 'tcp-echo-cloud'],
    ]
    for (const pods of sets) {
      lab.setService('web', pods, [8080])
      const uids = pods.map((p) => lab.pod(p).uid)
      await expect
        .poll(async () => (await endpointsUsed()).slice(-3).every((uid) => uids.includes(String(uid))), {
          timeout: 60_000,
        })
        .toBe(true)
    }
    const { good, failures } = await steady.finish()
    expect(failures).toEqual([])
    expect(good).toBeGreaterThan(10)
  })

  it('keeps a client on one endpoint while the service asks for affinity', async () => {
    const [clusterIP] = lab.setService('sticky', ['tcp-echo-edge', 'second'], [8080])
    const endpoints = ['tcp-echo-edge', 'second'].map((name) => {
      const { uid, ips } = lab.pod(name)
      return { addresses: [ips[0]], targetRef: { kind: 'Pod', name, uid } }
    })
    const ports = [{ name: 'http', port: 8080, protocol: 'TCP' }]
    const metadata = { name: 'sticky', namespace: 'default' }
    lab.writeManifest('service-sticky', [
      { kind: 'Service', metadata, spec: { clusterIP, ports, sessionAffinity: 'ClientIP' } },
      {
        kind: 'EndpointSlice',
        metadata: { ...metadata, labels: { 'kubernetes.io/service-name': 'sticky' } },
        addressType: 'IPv4',
        ports,
        endpoints,
      },
    ])
    await expect.poll(() => echoes(lab, 'sticky'), { timeout: 60_000 }).toBe(true)
    for (let i = 0; i < 4; i++) expect(await echoes(lab, 'sticky')).toBe(true)
    const lines = (await logOf(lab, 'client')).filter((l) => l.service === 'default/sticky:8080').slice(-4)
    expect(new Set(lines.map((l) => l.podUid)).size).toBe(1)
  })

  it('keeps the last good state when a manifest is broken', async () => {
    await lab.run('internet', ['sh', '-c', `printf 'kind: [unclosed\\n' > ${lab.manifests}/service-web.yaml`])
    await expect
      .poll(async () => (await logOf(lab, 'server')).map((l) => String(l.msg)).join('\n'), {
        timeout: 60_000,
      })
      .toContain('Cannot read service-web.yaml, line 2')
    expect(await echoes(lab, 'web')).toBe(true)
  })
})
