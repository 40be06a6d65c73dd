import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Lab } from '../lab/lab.ts'
import { client, echoes, LineProcess, lastAccess, startServer } from './helpers.ts'

let lab: Lab

async function serverUp(pod: string): Promise<boolean> {
  return JSON.parse(await lab.admin(pod, '/status')).server.up
}

/** On a starved machine the relay may win the race for the first connection to a peer. */
async function untilDirect(): Promise<void> {
  const route = async () =>
    (await echoes(lab, 'edge')) ? (await lastAccess(lab, 'client'))?.route : undefined
  await expect.poll(route, { timeout: 30_000 }).toBe('direct')
}

beforeAll(async () => {
  lab = await Lab.up({ environment: { EDGEMESH_IDENTITY_DIR: '{state}/identity' } })
  await startServer(lab, 'tcp-echo-edge')
  await startServer(lab, 'tcp-echo-cloud')
})

afterAll(async () => {
  await lab?.down()
})

describe('with the server away', () => {
  it('goes on with direct connections, makes new ones, and answers names; back, relays again', async () => {
    await untilDirect()
    expect(await echoes(lab, 'cloud')).toBe(true)
    const steady = new LineProcess(
      lab,
      'client',
      lab.node('test/conformance/client.ts', 'steady-one-connection', 'edge', '8080'),
    )
    await new Promise((resolve) => steady.process.stderr?.once('data', resolve))

    await lab.stopServer('KILL')
    await expect.poll(() => serverUp('client')).toBe(false)
    expect(await echoes(lab, 'edge')).toBe(true)
    await expect
      .poll(() => lastAccess(lab, 'client'))
      .toMatchObject({ route: 'direct', closeReason: 'closed' })
    const dig = await lab.run('client', ['dig', '+short', '+search', 'tcp-echo-cloud'])
    expect(dig.stdout.trim()).toBe('10.96.0.12')
    expect(await client(lab, 'failing', 'cloud', 8080)).toEqual({ bytes: 0, by: 'reset' })

    await lab.startServer()
    const back = Date.now()
    await expect.poll(() => echoes(lab, 'cloud'), { timeout: 60_000, interval: 10 }).toBe(true)
    console.log(`relayed connections work again ${Date.now() - back} ms after the server is back`)
    await expect.poll(() => lastAccess(lab, 'client')).toMatchObject({ route: 'relayed' })
    expect(await steady.finish()).toMatchObject({ lived: true })
  })

  it('serves and dials after restarts of the sidecars, by what they kept', async () => {
    expect(await echoes(lab, 'edge')).toBe(true)
    const kept = `${lab.folder}/pods/client/state/catalogue.json`
    await expect
      .poll(async () => (await lab.run('internet', ['cat', kept])).stdout)
      .toContain('tcp-echo-edge')
    await lab.stopServer('KILL')
    await lab.stopSidecar('client')
    await lab.startSidecar('client')
    await lab.stopSidecar('tcp-echo-edge', 'KILL')
    await lab.startSidecar('tcp-echo-edge')
    const dig = await lab.run('client', ['dig', '+short', '+search', 'tcp-echo-edge'])
    expect(dig.stdout.trim()).toBe('10.96.0.11')
    expect(await echoes(lab, 'edge')).toBe(true)
    expect(await serverUp('client')).toBe(false)
    await lab.startServer()
    await expect.poll(() => echoes(lab, 'edge'), { timeout: 60_000 }).toBe(true)
  })

  it('is restarted under load without losing a direct connection', async () => {
    const steady = new LineProcess(
      lab,
      'client',
      lab.node('test/conformance/client.ts', 'steady-new-connections', 'edge', '8080'),
    )
    await expect.poll(() => serverUp('client')).toBe(true)
    await lab.stopServer()
    await lab.startServer()
    await expect.poll(() => serverUp('client'), { timeout: 60_000 }).toBe(true)
    const { good, failures } = await steady.finish()
    expect(failures).toEqual([])
    expect(good).toBeGreaterThan(10)
  })
})

describe('a cut uplink', () => {
  it('leaves the site working inside, and heals by itself', async () => {
    await expect.poll(() => echoes(lab, 'cloud'), { timeout: 60_000 }).toBe(true)
    await lab.cutUplink('edge')
    expect(await echoes(lab, 'edge')).toBe(true)
    for (const pod of ['client', 'tcp-echo-edge']) {
      await lab.stopSidecar(pod, 'KILL')
      await lab.startSidecar(pod)
    }
    expect(await echoes(lab, 'edge')).toBe(true)
    const dig = await lab.run('client', ['dig', '+short', '+search', 'tcp-echo-cloud'])
    expect(dig.stdout.trim()).toBe('10.96.0.12')
    await lab.restoreUplink('edge')
    await expect.poll(() => echoes(lab, 'cloud'), { timeout: 60_000 }).toBe(true)
  })
})
