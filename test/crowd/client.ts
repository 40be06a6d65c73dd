// Many sidecars in one process, each with its own control channel and relay client: they come all at once, and then
// dial random ones of all through the relay, and compare what comes back. Commands by standard input, see main.ts.
import type { Duplex } from 'node:stream'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { pause, withDeadline } from '#shared/lifecycle.ts'
import { answer, nextCommand } from '../bench/load/lines.ts'
import { type MeshOptions, type MeshPod, openMeshClient, refusedConnects } from '../bench/load/mesh-client.ts'
import { SeededBytes } from '../conformance/traffic.ts'
import type { Member } from './figures.ts'

export interface Open extends Pick<MeshOptions, 'server' | 'replicas' | 'trustBundleFile'> {
  pods: MeshPod[]
  /** The uids of all, ours too. */
  everybody: string[]
  seed: number
}

export interface Run {
  seconds: number
  /** From the end of a dial to the next one of the same sidecar, in ms. */
  restMs: number
}

const bytesPerDial = 16_384
const upDeadlineMs = 120_000
const echoDeadlineMs = 30_000

const open = await nextCommand<Open>()
if (open === undefined) process.exit(0)
const { pods, everybody, seed, ...options } = open
const random = new SeededBytes(seed)
const below = (limit: number) => random.block(4).readUInt32LE() % limit

type Client = Awaited<ReturnType<typeof openMeshClient>>

/** One sidecar, and what it got. */
class Sidecar {
  readonly #uid: string
  readonly #client: Client
  readonly member: Member = { dialled: 0, served: 0, latenciesMs: [], failures: [] }

  private constructor(uid: string, client: Client) {
    this.#uid = uid
    this.#client = client
  }

  static async start(pod: MeshPod): Promise<Sidecar> {
    const sidecar: Sidecar = new Sidecar(
      pod.uid,
      await openMeshClient(pod, { ...options, serve: (stream) => sidecar.#serve(stream) }),
    )
    return sidecar
  }

  untilUp(): Promise<void> {
    return this.#client.channel.untilUp(upDeadlineMs)
  }

  async dialUntil(until: number, restMs: number): Promise<void> {
    for (await pause(below(restMs)); performance.now() < until; await pause(restMs)) {
      const began = performance.now()
      try {
        await withDeadline(this.#dial(), echoDeadlineMs, 'finish a dial')
        this.member.latenciesMs.push(Math.round(performance.now() - began))
        this.member.dialled++
      } catch (error) {
        this.member.failures.push(sentenceOf(error))
      }
    }
  }

  async #dial(): Promise<void> {
    const others = everybody.length - 1
    const at = everybody.indexOf(this.#uid)
    const peer = everybody[(at + 1 + below(others)) % everybody.length] ?? ''
    const stream = await this.#client.relay.dial(peer)
    stream.on('error', () => stream.destroy())
    const sent = new SeededBytes(below(1_000_000) + 1).block(bytesPerDial)
    stream.end(sent)
    const chunks: Buffer[] = []
    for await (const chunk of stream) chunks.push(chunk)
    if (!Buffer.concat(chunks).equals(sent))
      throw new EdgeMeshError('reset', 'Cannot take the echo: it is wrong.')
  }

  #serve(stream: Duplex): void {
    stream.on('error', () => stream.destroy())
    stream.once('end', () => this.member.served++)
    stream.pipe(stream)
  }
}

const alive = setInterval(() => undefined, 1_000) // pauses do not keep a process alive
const began = Date.now()
const sidecars = await Promise.all(pods.map(Sidecar.start))
await Promise.all(sidecars.map((s) => s.untilUp()))
answer({ upMs: Date.now() - began, again: await refusedConnects() })
const run = await nextCommand<Run>()
if (run !== undefined) {
  const until = performance.now() + run.seconds * 1_000
  await Promise.all(sidecars.map((s) => s.dialUntil(until, run.restMs)))
  answer(sidecars.map((s) => s.member))
  await nextCommand() // the channels stay until it has been looked what is left
}
clearInterval(alive)
process.exit(0)
