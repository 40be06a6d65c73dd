import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { sentenceOf } from '#shared/errors.ts'
import { pause, withDeadline } from '#shared/lifecycle.ts'
import { Lab, type UpOptions } from '../lab/lab.ts'
import { LineProcess, logOf, startServer } from '../mesh/helpers.ts'
import { Seeded } from '../server/seeded.ts'
import type { ChaosCase } from './case.ts'
import { judge, type LoadReport, type Verdict } from './verdict.ts'

/** The pod whose app makes all connections, and the services that it calls, by the route that leads to them. */
export const clientPod = 'a'
export const services = { direct: 'near', punched: 'b', relayed: 'c', mixed: 'mixed' } as const
/** Pods behind the services. */
export const farPods = ['near', 'b', 'c']
const routes = ['direct', 'punched', 'relayed'] as const
const port = 8080
/** Small: a case fills it. */
const stateKiB = 512
/** Traffic before the fault, and after its end, in ms. */
const beforeMs = 1_500
const afterMs = 6_000
const faketime = '/usr/$LIB/faketime/libfaketime.so.1'

/** Three sites behind NATs, with two replicas of the server, and traffic over every route between them. */
export class Rig {
  readonly lab: Lab
  readonly random: Seeded
  readonly seed: number
  #used = false

  private constructor(lab: Lab, seed: number) {
    this.lab = lab
    this.seed = seed
    this.random = new Seeded(seed)
  }

  /** `clocks`: of every sidecar, so that `setClock` works; needs libfaketime. */
  static async up(
    seed: number,
    { name, clocks = false }: { name?: string; clocks?: boolean } = {},
  ): Promise<Rig> {
    const options: UpOptions = {
      natSites: [
        { name: 'a', nat: 'port' },
        { name: 'b', nat: 'port' },
        { name: 'c', nat: 'symmetric' },
      ],
      replicas: 2,
      stateKiB,
      environment: clocks ? clockEnvironment : {},
      ...(name === undefined ? {} : { name }),
    }
    const lab = await Lab.up(options)
    try {
      await lab.addPod({ name: 'near', node: 'mkedge-a' })
      lab.setService('near', ['near'], [port])
      lab.setService('mixed', farPods, [port])
      for (const pod of farPods) await startServer(lab, pod, port)
      return new Rig(lab, seed)
    } catch (error) {
      await lab.down()
      throw error
    }
  }

  /** Runs one case with traffic from before the fault until after its end, and judges what became of it. */
  async run(chosen: ChaosCase): Promise<Verdict> {
    await this.#makeReady()
    const load = await this.#startLoad()
    await pause(beforeMs + this.random.below(1_000))
    const faultAt = Date.now()
    const heal = await chosen.start(this)
    await pause(chosen.lastsMs)
    const mendedAt = chosen.alone === true ? faultAt : Date.now()
    await heal?.()
    await pause(afterMs)
    const checked = await this.#check(chosen)
    const report = (await withDeadline(load.finish(), 60_000, 'end the traffic')) as unknown as LoadReport
    const leftOver = await this.#leftOver()
    const rules = { mayFail: true, mayTruncate: false, ...chosen.rules }
    const verdict = judge({ report, mendedAt, leftOver }, rules)
    return { ...verdict, reasons: [...verdict.reasons, ...checked] }
  }

  async down(): Promise<void> {
    await this.lab.down()
  }

  /** The replica that a pod is connected to. */
  async replicaOf(pod: string): Promise<string> {
    const { server } = JSON.parse(await this.lab.admin(pod, '/status'))
    const own = this.lab.replicas.find((r) => r.port === server.address?.port)
    if (own === undefined || !server.up) throw new Error(`Cannot tell the replica of ${pod}: it has none.`)
    return own.name
  }

  /** Moves a sidecar's clock by so many seconds. */
  setClock(pod: string, seconds: number): void {
    const file = join(this.lab.folder, 'pods', pod, 'clock')
    writeFileSync(file, `${seconds < 0 ? '' : '+'}${seconds}\n`)
  }

  /** Runs a shell script as root where the pod's sidecar sees its disk. */
  async onDisk(pod: string, script: string): Promise<{ code: number | null; stdout: string }> {
    const pid = String(this.lab.pidOf(pod))
    const state = join(this.lab.folder, 'pods', pod, 'state')
    return this.lab.run('internet', ['nsenter', '-t', pid, '-m', 'sh', '-c', `cd ${state} && ${script}`])
  }

  /** That a file which the pod's sidecar keeps is whole JSON and has the word in it, at last. */
  async mustBeOnDisk(pod: string, file: string, word: string): Promise<void> {
    let kept = ''
    for (const until = Date.now() + 10_000; Date.now() < until; ) {
      kept = (await this.onDisk(pod, `cat ${file}`)).stdout
      if (kept.includes(word) && JSON.parse(kept) !== null) return
    }
    throw new Error(`Cannot find "${word}" in ${file} of ${pod}: it says ${kept.slice(0, 200)}.`)
  }

  /** Each case begins with a client that knows of no failure, and with the three routes. */
  async #makeReady(): Promise<void> {
    if (this.#used) {
      await this.lab.stopSidecar(clientPod)
      await this.lab.startSidecar(clientPod)
    }
    this.#used = true
    for (const route of routes) {
      for (const until = Date.now() + 60_000; (await this.#routeTo(services[route])) !== route; ) {
        if (Date.now() > until)
          throw new Error(`Cannot begin: ${services[route]} is not ${route} after 60 s.`)
      }
    }
  }

  /** The route of one more connection. */
  async #routeTo(service: string): Promise<unknown> {
    const argv = this.lab.node('test/conformance/client.ts', 'echo', service, String(port))
    await this.lab.run(clientPod, argv)
    const lines = (await logOf(this.lab, clientPod)).filter((l) => l.msg === 'connection')
    return lines.findLast((l) => l.service === `default/${service}:${port}` && l.closeReason === 'closed')
      ?.route
  }

  async #startLoad(): Promise<LineProcess> {
    const targets = Object.entries(services).map(([route, service]) => `${route}=${service}`)
    const seed = String(1 + this.random.below(1_000_000))
    const load = new LineProcess(this.lab, clientPod, this.lab.node('test/chaos/load.ts', seed, ...targets))
    await withDeadline(load.next(), 30_000, 'start the traffic')
    return load
  }

  async #check(chosen: ChaosCase): Promise<string[]> {
    try {
      await chosen.check?.(this)
      return []
    } catch (error) {
      return [sentenceOf(error)]
    }
  }

  /** Connections that sidecars hold although no app has one any more: none, within 15 s. */
  async #leftOver(): Promise<number> {
    const held = async (pod: string) => JSON.parse(await this.lab.admin(pod, '/status')).connections as number
    for (const until = Date.now() + 15_000; ; ) {
      const counts = await Promise.all([clientPod, ...farPods].map(held))
      const sum = counts.reduce((a, b) => a + b)
      if (sum === 0 || Date.now() > until) return sum
    }
  }
}

const clockEnvironment = {
  LD_PRELOAD: faketime,
  FAKETIME_TIMESTAMP_FILE: '{state}/../clock',
  FAKETIME_CACHE_DURATION: '1',
  FAKETIME_DONT_FAKE_MONOTONIC: '1',
}
