import { createHash } from 'node:crypto'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { SeededBytes } from '../conformance/traffic.ts'
import { Lab } from '../lab/lab.ts'
import { serverAddress } from '../lab/topology.ts'
import { client, echoes, lastAccess, logOf, startServer } from './helpers.ts'

/** A site whose network lets nothing out but TLS to the server. */
let lab: Lab
const [pod, service, port, boxPort] = ['tcp-echo-cloud', 'cloud', 8_080, 9_000]
const inside = 'the network lets only TLS through to the server: the relay goes inside it'

beforeAll(async () => {
  lab = await Lab.up()
  await startServer(lab, pod)
  lab.setService(service, [pod], [port])
  const [replica] = lab.replicas
  const serverPort = String(replica?.port)
  const box = lab.spawn(
    'edge-router',
    lab.node('test/mesh/tls-only.ts', String(boxPort), serverAddress, serverPort),
  )
  await new Promise((resolve) => box.stdout?.once('data', resolve))
  const all = ['-p', 'tcp', '-d', serverAddress, '--dport', serverPort]
  const rule = ['PREROUTING', ...all, '-j', 'REDIRECT', '--to-ports', String(boxPort)]
  await lab.run('edge-router', ['iptables', '-t', 'nat', '-I', ...rule])
  await lab.stopSidecar('client')
  await lab.startSidecar('client') // its channel goes through the box, too
}, 120_000)

afterAll(async () => {
  await lab?.down()
})

it('reaches the cloud by a relay inside TLS, at once', async () => {
  await expect.poll(() => echoes(lab, service), { timeout: 20_000 }).toBe(true) // the service is new
  await expect.poll(() => lastAccess(lab, 'client'), { timeout: 10_000 }).toMatchObject({ route: 'relayed' })
  await expect
    .poll(async () => (await logOf(lab, 'client')).filter((l) => l.msg === inside).length, {
      timeout: 10_000,
    })
    .toBe(1)
})

it('carries bulk both ways exactly, and ends each direction by itself', async () => {
  expect(await client(lab, 'upload', service, port, 30_000_000)).toEqual({ correct: true })
  const sha256 = createHash('sha256').update(new SeededBytes(5).block(30_000_000)).digest('hex')
  const down = await client(lab, 'download', service, port, 30_000_000)
  expect(down).toEqual({ bytes: 30_000_000, sha256, by: 'end' })
  expect(await client(lab, 'client-fin-first', service, port)).toEqual({ correct: true })
  expect(await client(lab, 'server-fin-first', service, port)).toMatchObject({ by: 'end' })
  expect(await client(lab, 'server-reset', service, port)).toMatchObject({ by: 'reset' })
})

it('serves many connections, and none of them fails', async () => {
  for (let i = 0; i < 30; i++) expect(await echoes(lab, service)).toBe(true)
  expect((await logOf(lab, 'client')).filter((l) => l.msg === inside)).toHaveLength(1)
})
