import { setTimeout as sleep } from 'node:timers/promises'
import { serverAddress } from '../../lab/topology.ts'
import type { BenchCase, Trial } from '../case.ts'
import { limit, type Values } from '../figures.ts'
import type { MeshPod } from '../load/mesh-client.ts'
import { cpuOf, type LineProcess, type Meter, type Rig } from '../rig.ts'

const peerName = 'haproxy TCP'
const serverPort = 20_004
const [haproxyPort, sinkPort] = [7_301, 7_302]
const sinkAddress = '172.20.0.3'
const seconds = 4
/** Pods at each side: one pod may have 256 pairs, and ask for 50 a second. */
const pods = 8

interface Sides {
  sources: MeshPod[]
  sinks: MeshPod[]
  ours: Meter
  peer: Meter
}

const prepared = new WeakMap<Rig, Promise<Sides>>()

async function makeSides(rig: Rig): Promise<Sides> {
  const config = `listen relay
  mode tcp
  bind :${haproxyPort}
  server sink ${sinkAddress}:${sinkPort}`
  return {
    sources: await rig.fakePods('source', pods),
    sinks: await rig.fakePods('sink', pods),
    ours: rig.meter('server'),
    peer: await rig.haproxy('mkmaster1', 'relay', config, haproxyPort),
  }
}

function sidesOf(rig: Rig): Promise<Sides> {
  const known = prepared.get(rig) ?? makeSides(rig)
  prepared.set(rig, known)
  return known
}

interface Pairs {
  source: LineProcess
  sink: LineProcess
}

/** Opens `count` connections from the edge's node to the cloud's, through the relay or through haproxy. */
async function openPairs(rig: Rig, count: number, through: 'relay' | 'haproxy'): Promise<Pairs> {
  const { sources, sinks } = await sidesOf(rig)
  const source = rig.script('mkedge3', 'test/bench/load/blast.ts', 'source')
  const sink = rig.script('mkworker3', 'test/bench/load/blast.ts', 'sink')
  const server = { host: serverAddress, port: serverPort }
  const trustBundleFile = `${rig.lab.folder}/server/ca.crt`
  const used = count < pods ? 1 : pods
  const each = count / used
  if (through === 'relay')
    sink.send({ relay: { server, trustBundleFile, pods: sinks.slice(0, used), count: each } })
  else sink.send({ listen: { port: sinkPort, count } })
  await sink.next()
  if (through === 'relay') {
    const peers = sinks.slice(0, used).map((p) => p.uid)
    source.send({ relay: { server, trustBundleFile, pods: sources.slice(0, used), peers, count: each } })
  } else source.send({ dial: { host: serverAddress, port: haproxyPort, count } })
  await Promise.all([source.next(), sink.next()])
  return { source, sink }
}

function end({ source, sink }: Pairs): void {
  source.kill()
  sink.kill()
}

async function measureBulk(
  rig: Rig,
  count: number,
  through: 'relay' | 'haproxy',
  meter: Meter,
): Promise<Values> {
  const { source, sink } = await openPairs(rig, count, through)
  try {
    const before = cpuOf([meter])
    sink.send({ seconds })
    source.send({ seconds })
    const [, taken] = await Promise.all([source.next(), sink.next<{ bytes: number; seconds: number }>()])
    const { rss, anonymous } = meter.memory
    const cpu = (cpuOf([meter]) - before) / (taken.bytes / 1e9)
    return { speed: (taken.bytes * 8) / 1e9 / taken.seconds, cpu, rss, anonymous }
  } finally {
    end({ source, sink })
  }
}

function bulk(name: string, what: string, count: number, least: number): BenchCase {
  return {
    name,
    what,
    peerName,
    rttMs: 0,
    figures: [
      { metric: 'speed', unit: 'Gbit/s', better: 'higher', least },
      { metric: 'cpu', unit: 'cpu-s/GB', better: 'lower' },
      { metric: 'rss', unit: 'MB', better: 'lower' },
      { metric: 'anonymous', unit: 'MB', better: 'lower' },
    ],
    async prepare(rig): Promise<Trial> {
      const { ours, peer } = await sidesOf(rig)
      return {
        ours: () => measureBulk(rig, count, 'relay', ours),
        peer: () => measureBulk(rig, count, 'haproxy', peer),
      }
    },
  }
}

const idlePairs = 1_000
const firstPairs = 200
const settleMs = 8_000

export const relayCases: readonly BenchCase[] = [
  // First: what bulk leaves behind in the server would be given back meanwhile, and hide what pairs take.
  {
    name: 'relay-idle',
    what: `${idlePairs} joined pairs that carry nothing`,
    peerName: limit,
    rttMs: 0,
    maxRounds: 1,
    figures: [{ metric: 'memory', unit: 'kB/pair', better: 'lower', least: 1 }],
    async prepare(rig): Promise<Trial> {
      const { ours } = await sidesOf(rig)
      return {
        async ours() {
          // What a start leaves behind is given back then, and would hide what pairs take.
          end(await openPairs(rig, firstPairs, 'relay'))
          await sleep(settleMs)
          const before = ours.memory.rss
          const pairs = await openPairs(rig, idlePairs, 'relay')
          await sleep(settleMs)
          const after = ours.memory.rss
          end(pairs)
          // The room of the first ones may have been taken again.
          return { memory: ((after - before) * 1_000) / (idlePairs - firstPairs) }
        },
        limits: { memory: 30 },
      }
    },
  },
  bulk('relay-bulk', 'bulk through two joined streams', 1, 1.9),
  bulk('relay-pairs', 'bulk through 200 joined pairs at once', 200, 1.3),
]
