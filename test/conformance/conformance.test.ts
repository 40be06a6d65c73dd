import type { ChildProcess } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createInterface } from 'node:readline'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { Lab } from '../lab/lab.ts'
import { SeededBytes } from './traffic.ts'

/** Every route that carries connections passes all of this, through real pods, sidecars and NATs. */
const routes = [
  { route: 'direct', service: 'near', pod: 'near' },
  { route: 'punched', service: 'far', pod: 'far' },
  { route: 'relayed', service: 'cloud', pod: 'tcp-echo-cloud' },
] as const

const port = 8080
let lab: Lab
const servers = new Map<string, ConformanceServer>()

/** The server process in a pod, and what it reports of each ended connection. */
class ConformanceServer {
  readonly process: ChildProcess
  readonly reports: Record<string, unknown>[] = []
  #waiting: (() => void) | undefined

  constructor(pod: string) {
    this.process = lab.spawn(pod, lab.node('test/conformance/server.ts', '::', String(port)))
    createInterface({ input: this.process.stdout ?? process.stdin }).on('line', (line) => {
      this.reports.push(JSON.parse(line))
      this.#waiting?.()
    })
  }

  /** Drops the reports of connections that nobody asks about. */
  forget(): void {
    this.reports.length = 0
  }

  /** The next report, in the order of the connections' ends. */
  async next(): Promise<Record<string, unknown>> {
    while (this.reports.length === 0) {
      const { promise, resolve } = Promise.withResolvers<void>()
      this.#waiting = resolve
      await promise
    }
    return this.reports.shift() ?? {}
  }
}

async function client(
  name: string,
  service: string,
  ...args: (string | number)[]
): Promise<Record<string, unknown>> {
  const argv = lab.node(
    'test/conformance/client.ts',
    name,
    service,
    String(args.shift() ?? port),
    ...args.map(String),
  )
  const { code, stdout, stderr } = await lab.run('client', argv, { timeoutMs: 170_000 })
  if (code !== 0) throw new Error(`client ${name} ended with ${code}: ${stderr}`)
  return JSON.parse(stdout)
}

/** The access lines of a pod's sidecar. */
async function accessLines(pod: string): Promise<Record<string, unknown>[]> {
  const { stdout } = await lab.run('internet', ['cat', lab.logOf(pod)])
  return stdout.split('\n').flatMap((line) => (line.includes('"msg":"connection"') ? [JSON.parse(line)] : []))
}

const lastReason = async () => (await accessLines('client')).at(-1)?.closeReason
const patient = { timeout: 60_000 }

function hashOf(total: number, seed: number): string {
  const bytes = new SeededBytes(seed)
  const hash = createHash('sha256')
  for (let left = total; left > 0; left -= 65_536) hash.update(bytes.block(Math.min(left, 65_536)))
  return hash.digest('hex')
}

async function rssMiB(part: string): Promise<number> {
  const { stdout } = await lab.run('internet', ['cat', `/proc/${lab.pidOf(part)}/status`])
  return Number(/VmRSS:\s+(\d+)/.exec(stdout)?.[1]) / 1024
}

async function restartSidecar(pod: string): Promise<void> {
  await lab.stopSidecar(pod)
  await lab.startSidecar(pod)
}

/** A pod beside the client, one behind another NAT, and one that only the relay reaches. */
async function threeRoutes(fastPath: string): Promise<Lab> {
  const made = await Lab.up({
    natSites: [
      { name: 'client', nat: 'port' },
      { name: 'far', nat: 'port' },
    ],
    environment: { EDGEMESH_FAST_PATH: fastPath },
    serverOptions: ['--fast-path', fastPath],
  })
  await made.addPod({ name: 'near', node: 'mkedge-client' })
  made.setService('near', ['near'], [port, 5432])
  return made
}

/** The pump takes bulk over when it proves to be bulk; and at once, never, and anywhere in the first megabytes. */
const modes = [
  { fastPath: 'auto', bulk: 1_000_000_000, megabytes: 110 },
  // Forced modes are for tests: they may take both ways' memory at once.
  { fastPath: 'always', bulk: 30_000_000, megabytes: 150 },
  { fastPath: 'never', bulk: 30_000_000, megabytes: 150 },
  { fastPath: 'random', bulk: 30_000_000, megabytes: 150 },
] as const

describe.each(modes)('with the fast path $fastPath', ({ fastPath, bulk, megabytes }) => {
  beforeAll(async () => {
    lab = await threeRoutes(fastPath)
    for (const { pod } of routes) {
      const server = new ConformanceServer(pod)
      servers.set(pod, server)
      expect(await server.next()).toHaveProperty('listening')
    }
  })

  afterAll(async () => {
    await lab?.down()
  })

  describe('a sidecar that has just started', () => {
    // From the sources; the bundle of the image takes some 7 MB less (`npm run bench -- start`).
    it('takes at most 80 MB of memory', async () => {
      for (const pod of lab.pods) expect(await rssMiB(pod.name)).toBeLessThanOrEqual(80)
    })
  })

  // Nothing of it is any route's, or the pump's, so once is enough.
  if (fastPath === 'auto')
    describe('a service without an endpoint that can be reached', () => {
      it('shows the client a reset', async () => {
        const [address] = lab.setService('gone', ['tcp-echo-cloud'], [port])
        const gone = `${crypto.randomUUID()}`
        lab.writeManifest('service-gone', unreachableService('gone', address, gone))
        await expect
          .poll(() => lab.admin('client', '/status').then((s) => JSON.parse(s).catalogue.version), {
            timeout: 60_000,
          })
          .toBeGreaterThan(1)
        const result = await client('failing', 'gone', port)
        expect(result).toEqual({ bytes: 0, by: 'reset' })
        await expect.poll(lastReason, patient).toMatch(/^(unreachable|timeout|no-endpoint)$/)
      })
    })

  describe.each(routes)('the $route route', ({ route, service, pod }) => {
    const report = async () => servers.get(pod)?.next()

    /** A punched session is behind the relayed one that serves the first connection, also after a restart. */
    const settled = async () => {
      await client('echo', service)
      await report()
      return (await accessLines('client')).at(-1)?.route
    }
    const settle = () => expect.poll(settled, patient).toBe(route)

    beforeEach(async () => {
      servers.get(pod)?.forget()
      await settle()
    })

    it('echoes, and is the route that the access line names', async () => {
      const line = () => accessLines('client').then((lines) => lines.at(-1))
      // On a starved machine the relay may win the race for the first connection; later ones take the better route.
      const echo = async () => {
        const before = (await accessLines('client')).length
        expect(await client('echo', service)).toEqual({ first: 'one', rest: 4, by: 'end' })
        await report()
        await expect.poll(async () => (await accessLines('client')).length, patient).toBeGreaterThan(before)
        return line()
      }
      await expect.poll(echo, patient).toMatchObject({
        route,
        service: `default/${service}:${port}`,
        bytesSent: 13,
        bytesReceived: 8,
      })
      expect(await line()).toMatchObject({ closeReason: 'closed', podUid: lab.pod(pod).uid })
      const far = () => accessLines(pod).then((lines) => lines.at(-1))
      await expect.poll(far, patient).toMatchObject({ direction: 'inbound', closeReason: 'closed' })
    })

    it('lets the client end first and still receive the answer', async () => {
      expect(await client('client-fin-first', service)).toEqual({ correct: true })
      expect(await report()).toMatchObject({ bytes: 100_000, by: 'end' })
    })

    it('lets the server end first and still receive what the client sends', async () => {
      expect(await client('server-fin-first', service)).toEqual({ received: 3, by: 'end' })
      expect(await report()).toMatchObject({ bytes: 100_000, sha256: hashOf(100_000, 2), by: 'end' })
    })

    it('shows the client a reset when the server resets', async () => {
      expect(await client('server-reset', service)).toEqual({ bytes: 1_000, by: 'reset' })
      await report()
    })

    it('shows the server a reset when the client resets', async () => {
      await client('client-reset', service)
      expect(await report()).toMatchObject({ bytes: 1_000, by: 'reset' })
    })

    it(`carries ${bulk} bytes up without a wrong one`, async () => {
      expect(await client('upload', service, port, bulk)).toEqual({ correct: true })
      expect(await report()).toMatchObject({ bytes: bulk, by: 'end' })
    })

    it(`carries ${bulk} bytes down without a wrong one, and takes at most ${megabytes} MB of memory for it`, async () => {
      for (const part of ['client', pod]) await restartSidecar(part)
      await settle()
      const received = await client('download', service, port, bulk)
      expect(received).toEqual({ bytes: bulk, sha256: hashOf(bulk, 5), by: 'end' })
      await report()
      for (const part of ['client', pod]) expect(await rssMiB(part)).toBeLessThanOrEqual(megabytes)
    })

    it('carries 500 connections at once', async () => {
      expect(await client('concurrent', service, port, 500)).toEqual({ correct: 500 })
      for (let i = 0; i < 500; i++) await report()
    })

    it('pushes back when the reader stops, with bounded memory on the way', async () => {
      const { taken } = (await client('slow-reader', service)) as { taken: number }
      await report()
      // Four kernels' socket buffers, which grow to 6 MB each, and the windows of streams; where both ways are forced, of both.
      expect(taken).toBeLessThan(60_000_000)
      for (const part of ['client', pod]) expect(await rssMiB(part)).toBeLessThan(150)
    })

    it('resets when nothing listens on the declared port', async () => {
      expect(await client('failing', service, 5432)).toEqual({ bytes: 0, by: 'reset' })
      await expect.poll(lastReason, patient).toBe('refused')
    })

    it('resets when the service has no such port', async () => {
      expect(await client('failing', service, 9_999)).toEqual({ bytes: 0, by: 'reset' })
      await expect.poll(lastReason, patient).toBe('refused')
    })

    it('goes on when the server is restarted under load, and no connection hangs', async () => {
      const argv = lab.node('test/conformance/client.ts', 'steady-new-connections', service, String(port))
      const load = lab.spawn('client', argv)
      const ended = new Promise<string>((resolve) =>
        load.stdout?.once('data', (data) => resolve(String(data))),
      )
      const count = async () => (await accessLines('client')).filter((l) => l.closeReason === 'closed').length
      const before = await count()
      await expect.poll(count, { timeout: 60_000 }).toBeGreaterThan(before + 5)
      await lab.stopServer('KILL')
      await lab.startServer()
      const after = await count()
      await expect.poll(count, { timeout: 60_000 }).toBeGreaterThan(after + 5)
      load.stdin?.write('stop\n')
      const { good, failures } = JSON.parse(await ended) as { good: number; failures: string[] }
      expect(good).toBeGreaterThan(10)
      // Directly, or through a hole that is there, nobody notices; through the relay the connections of the moment are reset, and the next ones wait.
      expect(failures.length).toBeLessThanOrEqual(route === 'relayed' ? 3 : 0)
      servers.get(pod)?.forget()
    })

    it('resets the streams of a peer that is killed, and reaches it again once it is back', async () => {
      const steady = lab.spawn(
        'client',
        lab.node('test/conformance/client.ts', 'steady-one-connection', service, String(port)),
      )
      await new Promise((resolve) => steady.stderr?.once('data', resolve))
      const ended = new Promise<string>((resolve) =>
        steady.stdout?.once('data', (data) => resolve(String(data))),
      )
      await lab.stopSidecar(pod, 'KILL')
      expect(JSON.parse(await ended)).toMatchObject({ lived: false })
      await lab.startSidecar(pod)
      await expect
        .poll(() => client('echo', service).catch(() => ({})), { timeout: 60_000 })
        .toMatchObject({ first: 'one', by: 'end' })
    })
  })
})

/** A service whose one endpoint is a pod with a sidecar that is not connected, at an address that nobody has. */
function unreachableService(name: string, clusterIP: string, podUid: string): object[] {
  const metadata = { name, namespace: 'default' }
  const ports = [{ name: 'tcp', port, protocol: 'TCP' }]
  return [
    { apiVersion: 'v1', kind: 'Service', metadata, spec: { clusterIP, clusterIPs: [clusterIP], ports } },
    {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { ...metadata, uid: podUid, annotations: { 'sidecar.edgemesh.io/status': 'injected' } },
      spec: { containers: [] },
    },
    {
      apiVersion: 'discovery.k8s.io/v1',
      kind: 'EndpointSlice',
      metadata: { ...metadata, labels: { 'kubernetes.io/service-name': name } },
      addressType: 'IPv4',
      ports,
      endpoints: [{ addresses: ['10.244.9.9'], targetRef: { kind: 'Pod', name, uid: podUid } }],
    },
  ]
}
