import { afterAll, beforeAll, expect, it } from 'vitest'
import { Lab } from '../lab/lab.ts'
import { client, echoes, lastAccess, logOf, metric, startServer } from './helpers.ts'

const port = 8080
const patient = { timeout: 60_000 }
let lab: Lab
/** The service's IPv4 address: by name the client would take turns between the families. */
let address = ''

beforeAll(async () => {
  lab = await Lab.up()
  for (const name of ['one', 'two']) {
    await lab.addPod({ name, node: 'mkedge2', sidecar: false })
    await startServer(lab, name)
  }
  ;[address] = lab.setService('plain', ['one'], [port])
  await startServer(lab, 'tcp-echo-edge')
})

afterAll(() => lab?.down())

const carried = () => metric(lab, 'client', 'edgemesh_express_connections_total{outcome="carried"}')
const given = () => metric(lab, 'client', 'edgemesh_express_connections_total{outcome="given"}')

/** Echoes until the worker has carried one. */
async function untilCarried(service: string): Promise<void> {
  const before = await carried()
  await expect
    .poll(async () => {
      await echoes(lab, service)
      return carried()
    }, patient)
    .toBeGreaterThan(before)
}

it('after the first connection to a service the worker carries the next ones, and says of each what it was', async () => {
  await untilCarried(address)
  expect(await client(lab, 'echo', address, port)).toMatchObject({ first: 'one', by: 'end' })
  const { ips } = lab.pod('one')
  await expect
    .poll(() => lastAccess(lab, 'client'), patient)
    .toMatchObject({
      route: 'plain',
      service: `default/plain:${port}`,
      endpoint: `${ips[0]}:${port}`,
      podUid: lab.pod('one').uid,
      bytesSent: 13,
      bytesReceived: 8,
      closeReason: 'closed',
    })
})

it('says who has reset a connection', async () => {
  await client(lab, 'server-reset', 'plain', port)
  await expect.poll(async () => (await lastAccess(lab, 'client'))?.closeReason, patient).toBe('reset by peer')
  await client(lab, 'client-reset', 'plain', port)
  await expect.poll(async () => (await lastAccess(lab, 'client'))?.closeReason, patient).toBe('reset by app')
})

it('gives what goes through a tunnel to the main thread', async () => {
  const before = await given()
  expect(await echoes(lab, 'edge')).toBe(true)
  expect(await given()).toBe(before + 1)
})

it('follows a service to its new endpoints at once', async () => {
  lab.setService('plain', ['two'], [port])
  const endpoint = async () => {
    await echoes(lab, address)
    return (await lastAccess(lab, 'client'))?.endpoint
  }
  await expect.poll(endpoint, patient).toBe(`${lab.pod('two').ips[0]}:${port}`)
  await untilCarried(address)
  expect(await endpoint()).toBe(`${lab.pod('two').ips[0]}:${port}`)
})

it('gives a connection to the main thread, which knows what to do, where the endpoint refuses', async () => {
  lab.setService('closed', ['one'], [9_090])
  const refused = async () => {
    await client(lab, 'failing', 'closed', 9_090).catch(() => undefined)
    return (await lastAccess(lab, 'client'))?.closeReason
  }
  await expect.poll(refused, patient).toBe('refused')
})

it('keeps nothing of what has ended, and drains without leftovers', async () => {
  await expect.poll(() => metric(lab, 'client', 'edgemesh_express_connections '), patient).toBe(0)
  await expect.poll(() => metric(lab, 'client', 'edgemesh_connections_open '), patient).toBe(0)
  await lab.stopSidecar('client')
  const log = (await logOf(lab, 'client')).map((l) => l.msg)
  expect(log).not.toContain('a part did not stop cleanly')
  expect(log).not.toContain('connections outlived the drain')
})
