import { existsSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Lab } from '../lab/lab.ts'
import { echoes, LineProcess, logOf, startServer } from './helpers.ts'

let lab: Lab

beforeAll(async () => {
  lab = await Lab.up()
  await startServer(lab, 'tcp-echo-edge')
  await startServer(lab, 'tcp-echo-cloud')
})

afterAll(async () => {
  await lab?.down()
})

function steady(service: string): LineProcess {
  return new LineProcess(
    lab,
    'client',
    lab.node('test/conformance/client.ts', 'steady-one-connection', service, '8080'),
  )
}

describe.each([
  ['direct', 'edge', 'tcp-echo-edge'],
  ['relayed', 'cloud', 'tcp-echo-cloud'],
])('a sidecar that is told to end, with a %s connection open', (_route, service, pod) => {
  it('takes no new ones, lets the open one finish, and ends', async () => {
    const open = steady(service)
    await new Promise((resolve) => open.process.stderr?.once('data', resolve))
    const stopped = lab.stopSidecar(pod)
    await expect.poll(async () => (await logOf(lab, pod)).map((l) => l.msg)).toContain('stopping')
    expect(await echoes(lab, service)).toBe(false)
    expect(await open.finish()).toMatchObject({ lived: true })
    await stopped
    expect(existsSync(`/proc/${lab.pidOf(pod)}/exe`)).toBe(false)
    expect((await logOf(lab, pod)).map((l) => l.msg)).not.toContain('connections outlived the drain')
    await lab.startSidecar(pod)
    await expect.poll(() => echoes(lab, service), { timeout: 60_000 }).toBe(true)
  })
})

it('cuts what has not finished when the time is up', async () => {
  const open = steady('edge')
  await new Promise((resolve) => open.process.stderr?.once('data', resolve))
  const ended = open.next()
  await lab.stopSidecar('tcp-echo-edge')
  expect(await ended).toMatchObject({ lived: false })
  expect((await logOf(lab, 'tcp-echo-edge')).map((l) => l.msg)).toContain('connections outlived the drain')
  await lab.startSidecar('tcp-echo-edge')
})
