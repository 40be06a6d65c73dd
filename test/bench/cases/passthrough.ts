import type { BenchCase, Trial } from '../case.ts'
import { iperf, untilServes, wrk } from '../load/tools.ts'
import type { Meter, Rig } from '../rig.ts'
import { measureBulk, measureRequests, memoryFigures, requestCpuFigure, startApps } from './tunnel.ts'

const peerName = 'haproxy TCP'
/** Where the kernel brings what the app dials to haproxy, as it brings to the sidecar what is for a service. */
const captured = '198.18.0.1'
const pod = 'plain'
const iperfPort = 5_201
const httpPort = 8_080
const proxied = { iperf: 7_201, http: 7_202 }

interface Sides {
  service: string
  ours: readonly Meter[]
  peer: readonly Meter[]
}

const prepared = new WeakMap<Rig, Promise<Sides>>()

/** A pod without a sidecar and a service over it; haproxy in the client's pod leads to the same apps. */
async function makeSides(rig: Rig): Promise<Sides> {
  const { ips } = await rig.lab.addPod({ name: pod, node: 'mkedge3', sidecar: false })
  const [service] = rig.lab.setService(pod, [pod], [iperfPort, httpPort])
  await startApps(rig, pod)
  await untilServes(rig.lab, service, httpPort)
  const listen = (name: 'iperf' | 'http', app: number) => `listen ${name}
  mode tcp
  bind 127.0.0.1:${proxied[name]}
  server app ${ips[0]}:${app}`
  const config = `${listen('iperf', iperfPort)}\n${listen('http', httpPort)}`
  const haproxy = await rig.haproxy('client', 'passthrough', config, proxied.http)
  const rule = ['-t', 'nat', '-I', 'OUTPUT', '-p', 'tcp', '-d', captured, '-j', 'REDIRECT']
  const { code, stderr } = await rig.lab.run('client', ['iptables', ...rule])
  if (code !== 0) throw new Error(`Cannot capture for haproxy: ${stderr}`)
  return { service, ours: [rig.meter('client')], peer: [haproxy] }
}

function sidesOf(rig: Rig): Promise<Sides> {
  const known = prepared.get(rig) ?? makeSides(rig)
  prepared.set(rig, known)
  return known
}

interface Requests {
  name: string
  what: string
  keepAlive: boolean
  /** Where the app dials haproxy. */
  host: string
  least?: number
}

function requests({ name, what, keepAlive, host, least }: Requests): BenchCase {
  const unit = keepAlive ? 'req/s' : 'conn/s'
  return {
    name,
    what,
    peerName,
    rttMs: 0,
    figures: [
      { metric: 'rate', unit, better: 'higher', ...(least === undefined ? {} : { least }) },
      requestCpuFigure,
    ],
    async prepare(rig): Promise<Trial> {
      const { service, ours, peer } = await sidesOf(rig)
      const load = (to: string, port: number) => wrk(rig.lab, to, port, 32, keepAlive)
      return {
        ours: () => measureRequests(ours, () => load(service, httpPort)),
        peer: () => measureRequests(peer, () => load(host, proxied.http)),
      }
    },
  }
}

export const passthroughCases: readonly BenchCase[] = [
  {
    name: 'passthrough-bulk',
    what: 'one connection, bulk, to a pod without a sidecar',
    peerName,
    rttMs: 0,
    figures: [
      { metric: 'speed', unit: 'Gbit/s', better: 'higher', least: 1.9 },
      { metric: 'cpu', unit: 'cpu-s/GB', better: 'lower', least: 0.4 },
      ...memoryFigures,
    ],
    async prepare(rig): Promise<Trial> {
      const { service, ours, peer } = await sidesOf(rig)
      return {
        ours: () => measureBulk(ours, () => iperf(rig.lab, service, iperfPort, 'up')),
        peer: () => measureBulk(peer, () => iperf(rig.lab, captured, proxied.iperf, 'up')),
      }
    },
  },
  requests({
    name: 'passthrough-keepalive',
    what: 'keep-alive requests on 32 connections',
    keepAlive: true,
    host: captured,
    least: 1,
  }),
  requests({
    name: 'passthrough-connections',
    what: 'a new connection per request',
    keepAlive: false,
    host: captured,
    least: 0.9,
  }),
  // What the kernel's NAT costs is ours only in these: haproxy has what dials it by itself.
  requests({
    name: 'passthrough-keepalive-dialled',
    what: 'the same, and haproxy is dialled instead of captured',
    keepAlive: true,
    host: '127.0.0.1',
  }),
  requests({
    name: 'passthrough-connections-dialled',
    what: 'the same, and haproxy is dialled instead of captured',
    keepAlive: false,
    host: '127.0.0.1',
  }),
]
