// Runs in a namespace of its own whose rules redirect 10.96.0.0/16 to 40001, with an echo server as the service's only
// endpoint; kills the worker while it carries a connection, and prints what became of what.
import { readdirSync } from 'node:fs'
import { connect, createServer, type Socket } from 'node:net'
import type { Worker } from 'node:worker_threads'
import { pino } from 'pino'
import { AccessLog } from '../../../sidecar/access-log.ts'
import { Express } from '../../../sidecar/express/express.ts'
import { Interceptor } from '../../../sidecar/interception/interceptor.ts'
import { dial } from '../../../sidecar/shared/dial.ts'
import { Pump } from '../../../sidecar/shared/pump/pump.ts'
import { spliceSockets } from '../../../sidecar/shared/splice.ts'
import { SidecarMetrics } from '../../../sidecar/sidecar-metrics.ts'

const service = {
  namespace: 'default',
  name: 'web',
  kind: 'clusterIP',
  clusterIPs: ['10.96.0.12', 'fd00:10:96::c'],
  ports: [{ name: 'http', port: 80, protocol: 'TCP' }],
  affinitySeconds: 0,
  localOnly: false,
  preferClose: false,
  bypass: false,
  balancer: 'round-robin',
} as const
const lines: { msg: string }[] = []
const log = pino({ level: 'trace' }, { write: (line: string) => lines.push(JSON.parse(line)) })
const workers: Worker[] = []
process.on('worker', (worker) => workers.push(worker))

const echo = createServer({ allowHalfOpen: true }, (socket) => {
  socket.on('error', () => undefined)
  socket.pipe(socket)
})
await new Promise<void>((resolve) => echo.listen(9_000, '127.0.0.1', resolve))
const ports = { http: 9_000 }
const endpoint = { addresses: ['127.0.0.1'], podUid: 'a', ports, ready: true, serving: true }

const pump = new Pump(log)
const metrics = new SidecarMetrics()
const express = new Express({
  pump,
  mode: 'auto',
  view: {
    self: { podUid: 'self', podIPs: ['10.9.0.1'], node: undefined, zone: undefined },
    byAddress: (address) =>
      service.clusterIPs.some((a) => a === address)
        ? { ...service, clusterIPs: [...service.clusterIPs], ports: [...service.ports] }
        : undefined,
    endpointsOf: () => [{ ...endpoint, terminating: false, sidecar: false }],
  },
  declaredPorts: () => [],
  trustDomain: 'cluster.local',
  accessLog: new AccessLog(log, metrics),
  used: () => undefined,
  metrics,
  log,
})

/** How the main thread carries what the worker does not. */
const interceptor = new Interceptor({
  addresses: ['127.0.0.1', '::1'],
  port: 40_001,
  onConnection: async (socket, destination) => {
    const { signal } = new AbortController()
    const options = { host: '127.0.0.1', port: 9_000, deadlineMs: 5_000, signal, allowHalfOpen: true }
    const upstream = await dial(options)
    express.learn(destination, { key: 'a', route: 'plain' })
    await spliceSockets(socket, upstream)
  },
  log,
})
await interceptor.listen()
express.attach(interceptor)

/** What comes back until the end, or how it broke. */
async function talk(host: string, socket = connect(80, host)): Promise<string> {
  socket.end('hello')
  let said = ''
  try {
    for await (const chunk of socket) said += chunk
    return said
  } catch {
    return 'reset'
  }
}

const carried = async () =>
  (await metrics.express.get()).values.find((v) => v.labels.outcome === 'carried')?.value ?? 0
const descriptors = () => readdirSync('/proc/self/fd').length

/** Talks until the worker has carried it, and returns all that was said. */
async function untilCarried(host: string): Promise<Set<string>> {
  const before = await carried()
  const answers = new Set<string>()
  for (const until = Date.now() + 30_000; (await carried()) === before && Date.now() < until; )
    answers.add(await talk(host))
  return answers
}

const first = [...(await untilCarried('10.96.0.12')), ...(await untilCarried('fd00:10:96::c'))]
const held: Socket = connect({ port: 80, host: '10.96.0.12', allowHalfOpen: true })
const heldEnded = new Promise<string>((resolve) => {
  held.once('error', () => resolve('reset'))
  held.once('end', () => resolve('end'))
})
held.write('held')
await new Promise((resolve) => held.once('data', resolve))
const open = express.open
const before = descriptors()
void workers[0]?.terminate()
const dying = talk('10.96.0.12') // wakes it up, to die
const broken = {
  held: await heldEnded,
  next: await dying.then((t) => (t === 'hello' || t === 'reset' ? 'over' : t)),
}
const byMain = [await talk('10.96.0.12'), await talk('fd00:10:96::c')]
const left = descriptors()
const again = [...(await untilCarried('10.96.0.12'))]
const died = lines.map((l) => l.msg).filter((m) => /died/.test(m))
await express.unlisten()
interceptor.close()
const closed = await talk('10.96.0.12')
await express.close()
await pump.close()
echo.close()
const result = {
  first,
  open,
  broken,
  byMain,
  fewer: left < before,
  again,
  workers: workers.length,
  died,
  closed,
}
console.log(JSON.stringify(result))
process.exit(0)
