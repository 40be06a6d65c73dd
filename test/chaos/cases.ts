import type { ChaosCase, Heal } from './case.ts'
import { clientPod, farPods, type Rig, services } from './rig.ts'

const hourSeconds = 3_600
const second = 1_000

/** Whom a case hurts, in words. */
const sidecars: readonly [pod: string, whose: string][] = [
  [clientPod, 'the calling pod'],
  ['near', 'a pod that is reached directly'],
  ['b', 'a pod that is reached through its NAT'],
  ['c', 'a pod that is reached by the relay'],
]

const killedSidecars = sidecars.map(
  ([pod, whose]): ChaosCase => ({
    name: `kill-sidecar-${pod}`,
    what: `kill -9 of the sidecar of ${whose}; started again after 3 s`,
    rules: { mayTruncate: pod === clientPod },
    lastsMs: 3 * second,
    async start({ lab }) {
      await lab.stopSidecar(pod, 'KILL')
      return () => lab.startSidecar(pod)
    },
  }),
)

const haltedSidecars = sidecars.map(
  ([pod, whose]): ChaosCase => ({
    name: `stop-sidecar-${pod}`,
    what: `SIGSTOP of the sidecar of ${whose} for 12 s`,
    lastsMs: 12 * second,
    async start({ lab }) {
      await lab.stopSidecar(pod, 'STOP')
      return () => lab.stopSidecar(pod, 'CONT')
    },
  }),
)

/** The replica that the calling pod is connected to, or the other one. */
async function replica(rig: Rig, which: 'its' | 'other'): Promise<string> {
  const its = await rig.replicaOf(clientPod)
  return rig.lab.replicas.find((r) => (r.name === its) === (which === 'its'))?.name ?? its
}

const replicas = [
  ['its', 'server', 'the server replica of the calling pod'],
  ['other', 'other-server', 'the other server replica'],
] as const

const killedServers = replicas.map(
  ([which, name, what]): ChaosCase => ({
    name: `kill-${name}`,
    what: `kill -9 of ${what}; started again after 12 s`,
    lastsMs: 12 * second,
    alone: true,
    async start(rig) {
      const chosen = await replica(rig, which)
      await rig.lab.stopServer('KILL', chosen)
      return () => rig.lab.startServer(chosen)
    },
  }),
)

const haltedServers = replicas.map(
  ([which, name, what]): ChaosCase => ({
    name: `stop-${name}`,
    what: `SIGSTOP of ${what} for 20 s`,
    lastsMs: 20 * second,
    alone: true,
    async start(rig) {
      const chosen = await replica(rig, which)
      await rig.lab.stopServer('STOP', chosen)
      return () => rig.lab.stopServer('CONT', chosen)
    },
  }),
)

const rollingRestart: ChaosCase = {
  name: 'rolling-restart',
  what: 'both server replicas are restarted, one after the other',
  rules: { mayFail: false },
  lastsMs: 0,
  alone: true,
  async start({ lab }) {
    for (const { name } of lab.replicas) {
      await lab.stopServer('TERM', name)
      await lab.startServer(name)
    }
    return undefined
  },
}

const network: readonly ChaosCase[] = [
  {
    name: 'reboot-router',
    what: 'the router of the calling site is off for a moment and has forgotten every connection',
    lastsMs: 0,
    async start({ lab }) {
      await lab.rebootRouter('a')
      return undefined
    },
  },
  {
    name: 'reboot-far-routers',
    what: 'the same of the routers of both other sites',
    lastsMs: 0,
    async start({ lab }) {
      for (const site of ['b', 'c']) await lab.rebootRouter(site)
      return undefined
    },
  },
  {
    name: 'cut-site',
    what: 'the calling site is cut off for 60 s',
    lastsMs: 60 * second,
    async start({ lab }) {
      await lab.cutUplink('a')
      return () => lab.restoreUplink('a')
    },
  },
  {
    name: 'bad-network',
    what: '2 % of the packets are lost and all others are 200 ms late each way, for 30 s',
    lastsMs: 30 * second,
    async start({ lab, seed }) {
      await lab.setInternet({ rttMs: 400, loss: 0.02, seed })
      return () => lab.setInternet({})
    },
  },
]

/** Changes the endpoints of a service every second. */
function churn(rig: Rig): Heal {
  const { lab, random } = rig
  const timer = setInterval(() => {
    const some = farPods.filter(() => random.below(2) === 0)
    lab.setService(services.mixed, some.length === 0 ? [random.pick(farPods)] : some, [8080])
  }, second)
  return async () => {
    clearInterval(timer)
    lab.setService(services.mixed, farPods, [8080])
  }
}

const changes: readonly ChaosCase[] = [
  {
    name: 'churn',
    what: 'the endpoints of a service change every second, for 20 s',
    rules: { mayFail: false },
    lastsMs: 20 * second,
    start: async (rig) => churn(rig),
  },
  {
    name: 'full-disk',
    what: 'the disk for the catalogue of the calling pod is full for 10 s, while endpoints change every second',
    rules: { mayFail: false },
    lastsMs: 10 * second,
    async start(rig) {
      await rig.onDisk(clientPod, 'cat /dev/zero > filler')
      const calm = churn(rig)
      return async () => {
        await rig.onDisk(clientPod, 'rm filler')
        await calm()
      }
    },
    check: (rig) => rig.mustBeOnDisk(clientPod, 'catalogue.json', services.mixed),
  },
  {
    name: 'clock-step',
    what: 'the clock of the calling sidecar steps an hour ahead, that of a called one an hour back; after 10 s both are right',
    rules: { mayFail: false },
    clocks: true,
    lastsMs: 10 * second,
    async start(rig) {
      rig.setClock(clientPod, hourSeconds)
      rig.setClock('b', -hourSeconds)
      return async () => {
        for (const pod of [clientPod, 'b']) rig.setClock(pod, 0)
      }
    },
  },
]

export const chaosCases: readonly ChaosCase[] = [
  ...killedSidecars,
  ...haltedSidecars,
  ...killedServers,
  ...haltedServers,
  rollingRestart,
  ...network,
  ...changes,
]
