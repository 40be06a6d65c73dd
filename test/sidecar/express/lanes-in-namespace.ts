// Runs in a namespace of its own whose rules redirect 10.96.0.0/16 to 40001. Two pods in one process: `near` captures, and
// has lanes to `far`, whose app echoes; 10.96.0.13 is reached by them, 10.96.0.12 in the clear. Kills the worker of
// each in turn while both have a connection open, and prints what became of which.
import { connect, createServer, type Socket } from 'node:net'
import type { Worker } from 'node:worker_threads'
import { pino } from 'pino'
import { AccessLog } from '../../../sidecar/access-log.ts'
import { Express } from '../../../sidecar/express/express.ts'
import { Interceptor } from '../../../sidecar/interception/interceptor.ts'
import { CertificateAuthority } from '../../../sidecar/shared/authority/certificate-authority.ts'
import type { ServiceEntry } from '../../../sidecar/shared/catalogue.ts'
import { dial } from '../../../sidecar/shared/dial.ts'
import { Pump } from '../../../sidecar/shared/pump/pump.ts'
import { spliceSockets } from '../../../sidecar/shared/splice.ts'
import { createKeyPair } from '../../../sidecar/shared/tls.ts'
import { SidecarMetrics } from '../../../sidecar/sidecar-metrics.ts'

const [plain, tunnelled] = ['10.96.0.12', '10.96.0.13']
const trustDomain = 'cluster.local'
const authority = await CertificateAuthority.open(process.argv[2] ?? '', trustDomain)
const log = pino({ level: 'silent' })
const workers: Worker[] = []
process.on('worker', (worker) => workers.push(worker))

async function listen(onSocket: (socket: Socket) => void, port: number): Promise<void> {
  const server = createServer({ allowHalfOpen: true }, onSocket)
  await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve))
}

const service = {
  namespace: 'default',
  kind: 'clusterIP',
  ports: [{ name: 'http', port: 80, protocol: 'TCP' }],
  affinitySeconds: 0,
  localOnly: false,
  preferClose: false,
  bypass: false,
  balancer: 'round-robin',
} as const
const entry = (address: string): ServiceEntry => ({
  ...service,
  ports: [...service.ports],
  name: address === plain ? 'plain' : 'tunnelled',
  clusterIPs: [address],
})
const endpoint = {
  addresses: ['127.0.0.1'],
  ports: { http: 9_000 },
  ready: true,
  serving: true,
  terminating: false,
}

async function pod(podUid: string) {
  const keys = await createKeyPair()
  const identity = { trustDomain, namespace: 'default', serviceAccount: 'default', podUid }
  const { chain, trustBundle } = await authority.issue(identity, keys.publicKey, 600_000)
  const pump = new Pump(log)
  const metrics = new SidecarMetrics()
  const express = new Express({
    pump,
    mode: 'auto',
    view: {
      self: { podUid, podIPs: ['127.0.0.1'], node: undefined, zone: undefined },
      byAddress: (address) => ([plain, tunnelled].includes(address) ? entry(address) : undefined),
      endpointsOf: (id) => [{ ...endpoint, podUid: 'far', sidecar: id !== 'default/plain' }],
    },
    declaredPorts: () => [9_000],
    trustDomain,
    accessLog: new AccessLog(log, metrics),
    used: () => undefined,
    metrics,
    log,
  })
  pump.setIdentity({ key: keys.privateKey.reveal(), chain, trustBundle })
  return { pump, express, metrics }
}

const [near, far] = [await pod('near'), await pod('far')]
await listen((socket) => {
  socket.on('error', () => undefined)
  socket.pipe(socket)
}, 9_000)
await listen((socket) => {
  socket.on('error', () => undefined)
  socket.once('data', () => {
    socket.pause()
    far.express.takeLane(socket, 'direct', () => undefined)
  })
}, 9_001)

const { signal } = new AbortController()
const to = (port: number) => dial({ host: '127.0.0.1', port, deadlineMs: 5_000, signal, allowHalfOpen: true })
const interceptor = new Interceptor({
  addresses: ['127.0.0.1', '::1'],
  port: 40_001,
  onConnection: async (socket, destination) => {
    const upstream = await to(9_000)
    const bulk = { podUid: 'far', dial: () => to(9_001) }
    if (destination.address === plain) near.express.learn(destination, { key: 'far', route: 'plain' })
    else near.express.learn(destination, { key: 'far', route: 'direct', bulk })
    await spliceSockets(socket, upstream)
  },
  log,
})
await interceptor.listen()
near.express.attach(interceptor)

/** One line there and back; the connection stays open. */
async function hold(host: string): Promise<{ socket: Socket; ended: Promise<string> }> {
  const socket = connect({ port: 80, host, allowHalfOpen: true })
  const ended = new Promise<string>((resolve) => {
    socket.once('error', () => resolve('reset'))
    socket.once('end', () => resolve('end'))
  })
  socket.write('held')
  await Promise.race([new Promise((resolve) => socket.once('data', resolve)), ended])
  return { socket, ended }
}

/** Whether what is said on it still comes back. */
async function lives({ socket, ended }: Awaited<ReturnType<typeof hold>>): Promise<string> {
  socket.write('more')
  const answer = new Promise<string>((resolve) => socket.once('data', () => resolve('lives')))
  return Promise.race([answer, ended])
}

/** Connects until the worker carries one, which stays open. */
async function untilHeld(host: string): Promise<Awaited<ReturnType<typeof hold>>> {
  for (const until = Date.now() + 30_000; Date.now() < until; ) {
    const before = near.express.open
    const held = await hold(host)
    if (near.express.open > before) return held
    held.socket.destroy()
  }
  throw new Error(`the worker carries nothing to ${host}`)
}

/** Ends a worker; `wake` is anything that makes it run. */
async function kill(worker: Worker | undefined, wake: () => unknown): Promise<void> {
  const ended = worker?.terminate()
  wake()
  await ended
}

let [held, beside] = [await untilHeld(tunnelled), await untilHeld(plain)]
const opened = { near: near.express.open, far: far.express.open, lanes: near.express.lanes }
await kill(workers[1], () => held.socket.write('wake'))
const farDied = [await held.ended, await lives(beside)]
beside.socket.destroy()
;[held, beside] = [await untilHeld(tunnelled), await untilHeld(plain)]
const again = [await lives(held), await lives(beside)]
await kill(workers[0], () => held.socket.write('wake'))
const nearDied = [await held.ended, await beside.ended]
const lanesLeft = near.express.lanes
const last = await untilHeld(tunnelled)
const after = await lives(last)
console.log(JSON.stringify({ opened, farDied, again, nearDied, lanesLeft, after, workers: workers.length }))
process.exit(0)
