import type { BenchCase, Trial } from '../case.ts'
import { limit, type Values } from '../figures.ts'
import { untilServes, wrk } from '../load/tools.ts'
import type { Meter, Rig } from '../rig.ts'
import { startApps } from './tunnel.ts'

const idlePods = ['idle-a', 'idle-b'] as const
/** Until then engines compile, and heaps grow to the size at which they are swept: after some 20 s of this. */
const firstConnections = 100_000
const manyConnections = 200_000

/** Pods of its own: what other cases did to a sidecar is none of its business. */
async function makePods(rig: Rig, ...names: string[]): Promise<Meter[]> {
  for (const name of names) await rig.lab.addPod({ name, node: 'mkedge2' })
  return names.map((name) => rig.meter(name))
}

const worst = (meters: readonly Meter[]): Values => ({
  rss: Math.max(...meters.map((m) => m.memory.rss)),
  anonymous: Math.max(...meters.map((m) => m.memory.anonymous)),
})

const idle: BenchCase = {
  name: 'start',
  what: 'a sidecar from its start until it is ready, and idle 5 s later',
  peerName: limit,
  rttMs: 0,
  maxRounds: 3,
  figures: [
    { metric: 'cpu', unit: 'ms', better: 'lower', least: 1 },
    { metric: 'rss', unit: 'MB', better: 'lower', least: 1 },
    { metric: 'anonymous', unit: 'MB', better: 'lower' },
  ],
  async prepare(rig): Promise<Trial> {
    const [name] = idlePods
    const [meter] = await makePods(rig, name)
    return {
      async ours() {
        await rig.lab.stopSidecar(name)
        await rig.lab.startSidecar(name)
        const cpu = (meter?.cpuSeconds ?? 0) * 1e3
        await new Promise((resolve) => setTimeout(resolve, 5_000))
        return { cpu, ...worst(meter === undefined ? [] : [meter]) }
      },
      limits: { cpu: 600, rss: 70, anonymous: 70 },
    }
  },
}

const slowReaders: BenchCase = {
  name: 'memory-slow-readers',
  what: '64 bulk streams with slow readers, the larger of both ends',
  peerName: limit,
  rttMs: 0,
  maxRounds: 1,
  figures: [
    { metric: 'rss', unit: 'MB', better: 'lower', least: 1 },
    { metric: 'anonymous', unit: 'MB', better: 'lower' },
  ],
  async prepare(rig): Promise<Trial> {
    const meters = await makePods(rig, 'reader', 'writer')
    const [service] = rig.lab.setService('writer', ['writer'], [8_080])
    const server = rig.script('writer', 'test/conformance/server.ts', '::', '8080')
    await server.next()
    return {
      async ours() {
        const load = 'test/bench/load/slow-readers.ts'
        const readers = rig.script('reader', load, service, '8080', '64', '500000')
        let most: Values = { rss: 0, anonymous: 0 }
        for (let i = 0; i < 40; i++) {
          await new Promise((resolve) => setTimeout(resolve, 500))
          const now = worst(meters)
          most = (now.rss ?? 0) > (most.rss ?? 0) ? now : most
        }
        readers.send('total')
        const { total } = await readers.next<{ total: number }>()
        readers.kill()
        if (total < 64 * 1_000_000) throw new Error(`the slow readers got only ${total} bytes`)
        return most
      },
      limits: { rss: 100, anonymous: 100 },
    }
  },
}

const connections: BenchCase = {
  name: 'memory-connections',
  what: `growth over ${manyConnections} connections after the first ${firstConnections}, the larger of both ends`,
  peerName: limit,
  rttMs: 0,
  maxRounds: 1,
  figures: [
    { metric: 'growth', unit: 'MB', better: 'lower', least: 1 },
    { metric: 'rss', unit: 'MB', better: 'lower' },
  ],
  async prepare(rig): Promise<Trial> {
    const meters = await makePods(rig, 'served')
    await startApps(rig, 'served')
    const [service] = rig.lab.setService('served', ['served'], [8_080])
    await untilServes(rig.lab, service, 8_080)
    const client = rig.meter('client')
    return {
      async ours() {
        const until = async (wanted: number) => {
          for (let done = 0; done < wanted; ) done += (await wrk(rig.lab, service, 8_080, 32, false)).count
        }
        await until(firstConnections)
        const before = [client, ...meters].map((m) => m.memory.rss)
        await until(manyConnections)
        const after = [client, ...meters].map((m) => m.memory.rss)
        const growth = Math.max(...after.map((rss, i) => rss - (before[i] ?? 0)))
        return { growth: Math.max(growth, 0), rss: Math.max(...after) }
      },
      limits: { growth: 5, rss: 100 },
    }
  },
}

export const memoryCases: readonly BenchCase[] = [idle, slowReaders, connections]
