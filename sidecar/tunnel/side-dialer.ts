import { X509Certificate } from 'node:crypto'
import type { ClientHttp2Session, ClientHttp2Stream } from 'node:http2'
import type { Duplex } from 'node:stream'
import { descriptorOf } from '#shared/descriptor.ts'
import { codeOf, EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { identityOf, podServerName } from '#shared/identity.ts'
import type { Logger } from '#shared/log.ts'
import type { Pump, Side } from '#shared/pump/pump.ts'
import type { Splice } from '#shared/splice.ts'
import type { SidecarMetrics } from '../sidecar-metrics.ts'
import { introduce, Mover, preamble, sessionNameOf, streamNameOf } from './side.ts'

/** A peer that could not be moved to is left alone for so long, in ms; longer each time. */
const minBlockedMs = 1_000
const maxBlockedMs = 60_000
const maxBlocked = 1_000
/** Side connections being made at once. */
const maxPending = 32

export interface BulkStream {
  podUid: string
  stream: ClientHttp2Stream
  /** One more byte stream to the peer's tunnel endpoint, by the route that the session took. */
  dial: () => Promise<Duplex>
}

/** Moves bulk streams that this pod has opened to side connections. What fails stays on its session. */
export class SideDialer {
  readonly #pump: Pump
  readonly #trustDomain: string
  readonly #metrics: SidecarMetrics
  readonly #log: Logger
  readonly #pending = new Set<Splice>()
  readonly #blocked = new Map<string, { untilMs: number; forMs: number }>()

  constructor(pump: Pump, trustDomain: string, metrics: SidecarMetrics, log: Logger) {
    this.#pump = pump
    this.#trustDomain = trustDomain
    this.#metrics = metrics
    this.#log = log
  }

  /** `a` of the splice is the app. Never rejects. */
  async move(splice: Splice, bulk: BulkStream): Promise<void> {
    if (this.#pending.has(splice) || splice.isElsewhere || !this.#mayTry(bulk.podUid)) return
    this.#pending.add(splice)
    try {
      if (!(await this.#pump.ready())) return
      await this.#secure(splice, bulk, await this.#open(bulk))
      this.#metrics.sideConnections.inc({ side: 'dialer', outcome: 'moved' })
      this.#blocked.delete(bulk.podUid)
    } catch (error) {
      // A stream that ends meanwhile is no fault of the peer's.
      const hasEnded = !splice.intact || splice.hasEnded('b')
      this.#metrics.sideConnections.inc({ side: 'dialer', outcome: hasEnded ? 'ended' : codeOf(error) })
      if (!hasEnded) this.#block(bulk.podUid, error)
    } finally {
      this.#pending.delete(splice)
    }
  }

  /** A socket whose other end waits for TLS. */
  async #open({ dial, podUid }: BulkStream): Promise<Duplex> {
    const socket = await dial()
    await introduce(socket, preamble, `move bulk to pod ${podUid}`)
    return socket
  }

  async #secure(splice: Splice, { podUid, stream }: BulkStream, socket: Duplex): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const fd = descriptorOf(socket)
    const session = stream.session as ClientHttp2Session | undefined
    if (fd === undefined || session === undefined || stream.id === undefined || !splice.intact) {
      socket.destroy()
      return
    }
    const name = streamNameOf(sessionNameOf(session), stream.id)
    const client = { serverName: podServerName(podUid, this.#trustDomain), name }
    const side: Side | undefined = this.#pump.secure(fd, client, {
      onNamed: (certificate) => {
        const peer = identityOf(new X509Certificate(certificate), this.#trustDomain)
        if (peer.podUid !== podUid || side === undefined || splice.isBroken) {
          side?.abort()
          return
        }
        if (!splice.intact) {
          // It has ended meanwhile, on the session; the peer, which has consented, waits for both ends here.
          side.accept()
          side.feed(undefined, true)
          side.drain(undefined)
          return
        }
        const mover = new Mover(splice, side, 'a')
        mover.expect()
        side.accept()
        mover.send()
        resolve()
      },
      onAgreed: () => undefined,
    })
    socket.destroy() // the pump has a duplicate
    if (side === undefined) throw new EdgeMeshError('limit', 'Cannot move bulk: the pump takes no more.')
    void side.moved.then(({ error = 'it was given up' }) =>
      reject(new EdgeMeshError('refused', `Cannot move bulk to pod ${podUid}: ${error}.`)),
    )
    await promise
  }

  #mayTry(podUid: string): boolean {
    const untilMs = this.#blocked.get(podUid)?.untilMs ?? 0
    return this.#pump.available && this.#pending.size < maxPending && performance.now() >= untilMs
  }

  #block(podUid: string, error: unknown): void {
    const before = this.#blocked.get(podUid)
    if (before === undefined)
      this.#log.info({ podUid, error: sentenceOf(error) }, 'bulk to this pod stays on its session')
    const forMs = before === undefined ? minBlockedMs : Math.min(maxBlockedMs, before.forMs * 2)
    if (this.#blocked.size >= maxBlocked) this.#blocked.clear()
    this.#blocked.set(podUid, { untilMs: performance.now() + forMs, forMs })
  }
}
