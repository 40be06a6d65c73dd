import type { BenchCase, Trial } from '../case.ts'
import { iperf, untilServes, wrk } from '../load/tools.ts'
import type { Meter, Rig } from '../rig.ts'
import { measureBulk, measureRequests, memoryFigures, requestCpuFigure, startApps } from './tunnel.ts'

const peerName = 'haproxy TCP'
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
  return { service, ours: [rig.meter('client')], peer: [haproxy] }
}

function sidesOf(rig: Rig): Promise<Sides> {
  const known = prepared.get(rig) ?? makeSides(rig)
  prepared.set(rig, known)
  return known
}

function requests(name: string, what: string, keepAlive: boolean, unit: string, least: number): BenchCase {
  return {
    name,
    what,
    peerName,
    rttMs: 0,
    figures: [{ metric: 'rate', unit, better: 'higher', least }, requestCpuFigure],
    async prepare(rig): Promise<Trial> {
      const { service, ours, peer } = await sidesOf(rig)
      const load = (host: string, port: number) => wrk(rig.lab, host, port, 32, keepAlive)
      return {
        ours: () => measureRequests(ours, () => load(service, httpPort)),
        peer: () => measureRequests(peer, () => load('127.0.0.1', proxied.http)),
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
        peer: () => measureBulk(peer, () => iperf(rig.lab, '127.0.0.1', proxied.iperf, 'up')),
      }
    },
  },
  requests('passthrough-keepalive', 'keep-alive requests on 32 connections', true, 'req/s', 1),
  requests('passthrough-connections', 'a new connection per request', false, 'conn/s', 0.9),
]
