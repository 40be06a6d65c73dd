import { X509Certificate } from 'node:crypto'
import type { ServerHttp2Session, ServerHttp2Stream } from 'node:http2'
import type { Duplex } from 'node:stream'
import { sentenceOf } from '#shared/errors.ts'
import { identityOf, type PodIdentity } from '#shared/identity.ts'
import type { Logger } from '#shared/log.ts'
import type { Pump, Side } from '#shared/pump/pump.ts'
import type { Splice } from '#shared/splice.ts'
import type { Shares } from '../shares.ts'
import type { SidecarMetrics } from '../sidecar-metrics.ts'
import { lanePreamble, Mover, parseStreamName, preamble, sessionNameOf, welcome } from './side.ts'

/** TLS ClientHello: a handshake record. */
const tlsHandshake = 0x16
/** How long a new connection may be silent, in ms. */
const firstByteDeadlineMs = 10_000

interface Session {
  peer: PodIdentity
  name: string
  streams: Map<number, Splice>
}

/** Takes side connections of peers' sessions: each is checked as the session was, and must name a stream of it. */
export class SideAcceptor {
  readonly #pump: Pump
  readonly #trustDomain: string
  /** Of each peer. */
  readonly #shares: Shares
  readonly #metrics: SidecarMetrics
  readonly #log: Logger
  readonly #byName = new Map<string, Session>()
  readonly #bySession = new WeakMap<ServerHttp2Session, Session>()

  constructor(pump: Pump, trustDomain: string, shares: Shares, metrics: SidecarMetrics, log: Logger) {
    this.#pump = pump
    this.#trustDomain = trustDomain
    this.#shares = shares
    this.#metrics = metrics
    this.#log = log
  }

  /** A session whose streams may be moved, by the peer that it belongs to. */
  register(session: ServerHttp2Session, peer: PodIdentity): void {
    const known = { peer, name: sessionNameOf(session).toString('hex'), streams: new Map() }
    this.#byName.set(known.name, known)
    this.#bySession.set(session, known)
    session.once('close', () => this.#byName.delete(known.name))
  }

  /** A stream of a session that may be moved, until its splice is done. `b` of the splice is the app. */
  offer(stream: ServerHttp2Stream, splice: Splice): void {
    const session = stream.session && this.#bySession.get(stream.session as ServerHttp2Session)
    const { id } = stream
    if (session === undefined || id === undefined) return
    session.streams.set(id, splice)
    void splice.done.then(() => session.streams.delete(id))
  }

  /**
   * Tells side connections and lanes from TLS by what comes first; TLS is given on with nothing taken out. Calls `proven` once the
   * peer of a side connection is known, or the connection over.
   */
  onConnection(
    socket: Duplex,
    proven: () => void,
    onTls: (socket: Duplex) => void,
    onLane: (socket: Duplex) => void,
  ): void {
    socket.once('close', proven)
    const timer = setTimeout(() => socket.destroy(), firstByteDeadlineMs)
    socket.once('close', () => clearTimeout(timer))
    const onError = () => socket.destroy()
    socket.on('error', onError)
    socket.once('data', (first: Buffer) => {
      clearTimeout(timer)
      socket.pause()
      if (first.equals(preamble)) void this.#accept(socket, proven)
      else if (first.equals(lanePreamble)) onLane(socket)
      else if (first[0] === tlsHandshake) {
        socket.off('error', onError)
        socket.unshift(first)
        onTls(socket)
      } else socket.destroy()
    })
  }

  async #accept(socket: Duplex, proven: () => void): Promise<void> {
    if (!(await this.#pump.ready())) {
      socket.destroy()
      return
    }
    welcome(socket, (fd) => {
      socket.off('close', proven)
      if (fd === undefined) proven()
      else this.#secure(fd, proven)
    })
  }

  #secure(fd: number, proven: () => void): void {
    let over: (() => void) | undefined
    let mover: Mover | undefined
    const side: Side | undefined = this.#pump.secure(fd, undefined, {
      onNamed: (certificate, name) => {
        proven()
        const found = this.#find(certificate, name)
        if (found !== undefined) over = this.#shares.take(found.peer.podUid)
        if (found === undefined || over === undefined || side === undefined) {
          side?.abort()
          return
        }
        mover = new Mover(found.splice, side, 'b')
        mover.expect()
        side.accept()
      },
      onAgreed: () => mover?.send(),
    })
    if (side === undefined) proven()
    void side?.moved.then(() => {
      proven()
      over?.()
      const outcome = mover === undefined ? 'refused' : 'moved'
      this.#metrics.sideConnections.inc({ side: 'acceptor', outcome })
    })
  }

  /** The stream of that name, if it is the peer's own and has not been moved, and the peer. */
  #find(certificate: Uint8Array, name: Uint8Array): { splice: Splice; peer: PodIdentity } | undefined {
    const { session: sessionName, streamId } = parseStreamName(name)
    const session = this.#byName.get(sessionName)
    const splice = session?.streams.get(streamId)
    try {
      const peer = identityOf(new X509Certificate(certificate), this.#trustDomain)
      if (session !== undefined && splice?.intact && !splice.isElsewhere && isSame(peer, session.peer))
        return { splice, peer }
      this.#log.info({ podUid: peer.podUid }, 'refused a side connection: it names no stream of its peer')
    } catch (error) {
      this.#log.warn({ error: sentenceOf(error) }, 'refused a side connection')
    }
    return undefined
  }
}

function isSame(a: PodIdentity, b: PodIdentity): boolean {
  return a.podUid === b.podUid && a.namespace === b.namespace && a.serviceAccount === b.serviceAccount
}
