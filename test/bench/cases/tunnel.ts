import type { BenchCase, Trial } from '../case.ts'
import type { Values } from '../figures.ts'
import { iperf, type Requests, untilServes, wrk } from '../load/tools.ts'
import { cpuOf, type Meter, memoryOf, type Rig } from '../rig.ts'

/** On the client's node: two namespaces on one bridge, so that what is measured is the proxies and not the network. */
const pod = 'app'
const peerName = 'haproxy mTLS pair'
const iperfPort = 5_201
const httpPort = 8_080
/** Ports of the pair: what the client's haproxy listens on, and the far one's. */
const pair = { iperf: [7_001, 7_101], http: [7_002, 7_102] } as const

interface Sides {
  service: string
  ours: readonly Meter[]
  peer: readonly Meter[]
}

const prepared = new WeakMap<Rig, Promise<Sides>>()

/** The apps, and the haproxy pair beside our sidecars: in the same two pods, to the same apps. */
function sidesOf(rig: Rig): Promise<Sides> {
  const known = prepared.get(rig)
  if (known !== undefined) return known
  const making = makeSides(rig)
  prepared.set(rig, making)
  return making
}

async function makeSides(rig: Rig): Promise<Sides> {
  const { ca, pem } = await rig.certificates()
  const { ips } = await rig.lab.addPod({ name: pod, node: 'mkedge3' })
  const [service] = rig.lab.setService(pod, [pod], [iperfPort, httpPort])
  await startApps(rig, pod)
  await untilServes(rig.lab, service, httpPort)
  const [far] = ips
  const near = (name: 'iperf' | 'http') => `listen ${name}
  mode tcp
  bind 127.0.0.1:${pair[name][0]}
  server far ${far}:${pair[name][1]} ssl crt ${pem} ca-file ${ca} verify required sni str(peer)`
  const there = (name: 'iperf' | 'http', app: number) => `listen ${name}
  mode tcp
  bind ${far}:${pair[name][1]} ssl crt ${pem} ca-file ${ca} verify required
  server app ${far}:${app}`
  const acceptor = await rig.haproxy(
    pod,
    'far',
    `${there('iperf', iperfPort)}\n${there('http', httpPort)}`,
    pair.http[1],
  )
  const dialer = await rig.haproxy('client', 'near', `${near('iperf')}\n${near('http')}`, pair.http[0])
  return { service, ours: [rig.meter('client'), rig.meter(pod)], peer: [dialer, acceptor] }
}

/** An iperf3 and an HTTP server in a pod. */
export async function startApps(rig: Rig, pod: string): Promise<void> {
  await rig.daemon(pod, ['iperf3', '-s', '-p', String(iperfPort)], iperfPort)
  const answer = 'http-request return status 200 content-type text/plain string "hello from the app"'
  await rig.haproxy(
    pod,
    `app-${pod}`,
    `frontend app\n  mode http\n  bind :${httpPort}\n  ${answer}`,
    httpPort,
  )
}

/** Bulk one way: speed, cpu of both ends per gigabyte, and memory of both ends after it. */
export async function measureBulk(
  meters: readonly Meter[],
  run: () => Promise<{ gigabits: number; gigabytes: number }>,
): Promise<Values> {
  const before = cpuOf(meters)
  const { gigabits, gigabytes } = await run()
  return {
    speed: gigabits,
    cpu: (cpuOf(meters) - before) / gigabytes,
    rss: memoryOf(meters, 'rss'),
    anonymous: memoryOf(meters, 'anonymous'),
  }
}

/** Requests: rate, latency, and cpu of both ends per request. */
export async function measureRequests(
  meters: readonly Meter[],
  run: () => Promise<Requests>,
): Promise<Values> {
  const before = cpuOf(meters)
  const { count, perSecond, p50Ms, p99Ms } = await run()
  return { rate: perSecond, p50: p50Ms, p99: p99Ms, cpu: ((cpuOf(meters) - before) / count) * 1e6 }
}

export const requestCpuFigure = { metric: 'cpu', unit: 'µs/req', better: 'lower' } as const

export const memoryFigures = [
  { metric: 'rss', unit: 'MB', better: 'lower' },
  { metric: 'anonymous', unit: 'MB', better: 'lower' },
] as const

function bulk(direction: 'up' | 'down'): BenchCase {
  return {
    name: `tunnel-bulk-${direction}`,
    what: `one connection, bulk ${direction}, pod to pod`,
    peerName,
    rttMs: 0,
    figures: [
      { metric: 'speed', unit: 'Gbit/s', better: 'higher', least: 1.4, aim: 1.7 },
      { metric: 'cpu', unit: 'cpu-s/GB', better: 'lower', least: 0.95, aim: 0.85 },
      ...memoryFigures,
    ],
    async prepare(rig): Promise<Trial> {
      const sides = await sidesOf(rig)
      return {
        ours: () => measureBulk(sides.ours, () => iperf(rig.lab, sides.service, iperfPort, direction)),
        peer: () => measureBulk(sides.peer, () => iperf(rig.lab, '127.0.0.1', pair.iperf[0], direction)),
      }
    },
  }
}

function requests(
  name: string,
  what: string,
  connections: number,
  keepAlive: boolean,
  figures: BenchCase['figures'],
): BenchCase {
  return {
    name,
    what,
    peerName,
    rttMs: 0,
    figures: [...figures, requestCpuFigure],
    async prepare(rig): Promise<Trial> {
      const sides = await sidesOf(rig)
      const load = (host: string, port: number) => wrk(rig.lab, host, port, connections, keepAlive)
      return {
        ours: () => measureRequests(sides.ours, () => load(sides.service, httpPort)),
        peer: () => measureRequests(sides.peer, () => load('127.0.0.1', pair.http[0])),
      }
    },
  }
}

export const tunnelCases: readonly BenchCase[] = [
  bulk('up'),
  bulk('down'),
  requests('tunnel-keepalive', 'keep-alive requests on 32 connections', 32, true, [
    { metric: 'rate', unit: 'req/s', better: 'higher', least: 1.2, aim: 1.35 },
    { metric: 'p99', unit: 'ms', better: 'lower', least: 1 },
  ]),
  requests('tunnel-latency', 'one request at a time', 1, true, [
    { metric: 'p50', unit: 'ms', better: 'lower', least: 1.25, aim: 1 },
  ]),
  requests('tunnel-connections', 'a new connection per request', 32, false, [
    { metric: 'rate', unit: 'conn/s', better: 'higher', least: 4, aim: 5.5 },
  ]),
]
