import { setTimeout as pause } from 'node:timers/promises'
import { serverAddress } from '../../lab/topology.ts'
import type { BenchCase, Trial } from '../case.ts'
import { limit } from '../figures.ts'
import type { MeshPod } from '../load/mesh-client.ts'
import type { LineProcess, Rig } from '../rig.ts'

const channels = 5_000
const processes = 5
const waitMs = 120_000
/** For garbage to be collected and given back, in ms. */
const settleMs = 5_000

interface Told {
  up: number
  told: number
  lastToldAt: number
}

/** Sums what the client processes say. */
async function ask(clients: readonly LineProcess[], command: 'count' | 'forget'): Promise<Told> {
  for (const client of clients) client.send(command)
  const all = await Promise.all(clients.map((client) => client.next<Told>()))
  return {
    up: all.reduce((sum, a) => sum + a.up, 0),
    told: all.reduce((sum, a) => sum + a.told, 0),
    lastToldAt: Math.max(...all.map((a) => a.lastToldAt)),
  }
}

async function until(clients: readonly LineProcess[], reached: (now: Told) => boolean): Promise<Told> {
  for (const end = Date.now() + waitMs; ; await pause(100)) {
    const now = await ask(clients, 'count')
    if (reached(now)) return now
    if (Date.now() > end) throw new Error(`after ${waitMs / 1_000} s: ${JSON.stringify(now)}`)
  }
}

function startClients(rig: Rig, pods: readonly MeshPod[]): LineProcess[] {
  return Array.from({ length: processes }, (_, i) => {
    const client = rig.script('mkworker3', 'test/bench/load/channels.ts')
    client.send({
      server: { host: serverAddress, port: 20_004 },
      trustBundleFile: `${rig.lab.folder}/server/ca.crt`,
      pods: pods.slice((i * channels) / processes, ((i + 1) * channels) / processes),
      subscriptions: ['default/edge'],
    })
    return client
  })
}

/** The longest pause of the server's event loop since it was last asked, in ms. */
async function longestPause(rig: Rig): Promise<number> {
  const metrics = await rig.lab.admin('mkmaster1', '/metrics')
  return Number(/^edgemesh_event_loop_longest_pause_seconds (\S+)$/m.exec(metrics)?.[1]) * 1e3
}

export const channelCases: readonly BenchCase[] = [
  {
    name: 'channels',
    what: `${channels} control channels of idle sidecars on one server`,
    peerName: limit,
    rttMs: 0,
    maxRounds: 1,
    figures: [
      { metric: 'memory', unit: 'kB/channel', better: 'lower', least: 1 },
      { metric: 'fan-out', unit: 'ms', better: 'lower', least: 1 },
      { metric: 'return', unit: 's', better: 'lower', least: 1 },
      { metric: 'pause', unit: 'ms', better: 'lower', least: 1 },
    ],
    async prepare(rig): Promise<Trial> {
      const meter = rig.meter('server')
      const pods = await rig.fakePods('channel', channels)
      // A server that has read their manifests once only, and is at rest: what it grows by is the channels'.
      await rig.lab.stopServer()
      await rig.lab.startServer()
      await pause(settleMs)
      return {
        async ours() {
          const before = meter.memory.rss
          const clients = startClients(rig, pods)
          try {
            await until(clients, ({ up, told }) => up === channels && told >= channels)
            await pause(settleMs)
            const memory = ((meter.memory.rss - before) * 1e3) / channels

            await ask(clients, 'forget')
            const changedAt = Date.now()
            rig.lab.setService('edge', ['tcp-echo-edge', 'tcp-echo-cloud'], [5_201, 8_080])
            const { lastToldAt } = await until(clients, ({ told }) => told >= channels)

            await rig.lab.stopServer('KILL')
            await rig.lab.startServer()
            await longestPause(rig)
            const restartedAt = Date.now()
            await until(clients, ({ up }) => up === channels)
            return {
              memory,
              'fan-out': lastToldAt - changedAt,
              return: (Date.now() - restartedAt) / 1e3,
              pause: await longestPause(rig),
            }
          } finally {
            for (const client of clients) client.kill()
          }
        },
        limits: { memory: 25, 'fan-out': 1_000, return: 30, pause: 200 },
      }
    },
  },
]
