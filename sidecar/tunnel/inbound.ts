import {
  constants,
  createSecureServer,
  type Http2SecureServer,
  type Http2Session,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from 'node:http2'
import { createServer, type Server, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import type { TLSSocket } from 'node:tls'
import { dial } from '#shared/dial.ts'
import { codeOf, EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { identityOf, type PodIdentity, spiffeIdOf } from '#shared/identity.ts'
import type { Logger } from '#shared/log.ts'
import { networkOf } from '#shared/networks.ts'
import { sidecarPorts } from '#shared/ports.ts'
import type { Pump } from '#shared/pump/pump.ts'
import { resetSession, resetStream } from '#shared/reset.ts'
import { type Side, Splice } from '#shared/splice.ts'
import { handshakeDeadlineMs, handshakeFailureOf } from '#shared/tls.ts'
import type { AccessLog } from '../access-log.ts'
import type { Identity } from '../control/identity.ts'
import type { SidecarMetrics } from '../sidecar-metrics.ts'
import type { ByteBudget } from './byte-budget.ts'
import { type ConnectFailure, decideInbound, statusOf } from './connect.ts'
import type { OfflineGrace } from './offline-grace.ts'
import { PeerLimits, peerLimits } from './peer-limits.ts'
import { SideAcceptor } from './side-acceptor.ts'
import { maxSessionMemory, maxStreams, streamWindow } from './windows.ts'

const upstreamDeadlineMs = 5_000
/** The dialer pings every 4 s; one that is silent for so long is dead, and its streams are reset. In ms. */
const silenceMs = 10_000
/**
 * Streams that a peer may reset at once and in a second. Node's defaults (1,000 and 33) are against strangers; here
 * each reset is that of an app's connection, and beyond the limit the whole session dies.
 */
const resets = { streamResetBurst: 20_000, streamResetRate: 2_000 }

const tooMuch = {
  refuse: 'limit',
  why: 'the peer has or opens too many streams, or reads too little of them',
} as const

export interface InboundOptions {
  port: number
  identity: Identity
  grace: OfflineGrace
  /** What may be dialled now; read at each CONNECT, since services come and go. */
  self: () => { podIPs: readonly string[]; declaredPorts: readonly number[] }
  accessLog: AccessLog
  pump: Pump
  /** Takes a peer's lane over from its preamble on; `proven` is called once the peer is known or the lane over. */
  onLane: (socket: Duplex, route: 'direct' | 'relayed', proven: () => void) => void
  metrics: SidecarMetrics
  log: Logger
}

/**
 * The tunnel endpoint: mTLS and HTTP/2 CONNECT, for direct connections on port 20006 and for sockets that come
 * by way of the relay. Dials nothing but this pod's own declared ports.
 */
export class Inbound {
  readonly #options: InboundOptions
  readonly #listener: Server
  readonly #server: Http2SecureServer
  readonly #sides: SideAcceptor
  readonly #sessions = new Map<ServerHttp2Session, PodIdentity>()
  readonly #aborter = new AbortController()
  /** Connections that the server had a part in. */
  readonly #relayed = new Set<string>()
  readonly #limits = new PeerLimits()
  /** Connections whose peer has not shown a certificate yet; what to call once it has. */
  readonly #unproven = new Map<string, () => void>()
  #streams = 0
  #draining = false

  constructor(options: InboundOptions) {
    this.#options = options
    this.#server = createSecureServer({
      requestCert: true,
      rejectUnauthorized: options.grace.strict, // otherwise by hand, before the session is known
      ALPNProtocols: ['h2'],
      handshakeTimeout: handshakeDeadlineMs,
      maxSessionMemory,
      ...resets,
      settings: { initialWindowSize: streamWindow, maxConcurrentStreams: maxStreams, enablePush: false },
      ...options.identity.tlsOptions(),
    })
    const { pump, identity, metrics, log } = options
    this.#sides = new SideAcceptor(pump, identity.trustDomain, this.#limits.sides, metrics, log)
    this.#listener = createServer({ noDelay: true }, (socket) => this.accept(socket))
    this.#listener.maxConnections = peerLimits.unproven + peerLimits.sessions
    this.#server.on('session', (session) => this.#onSession(session))
    this.#server.on('stream', (stream, headers) => {
      this.#onStream(stream, headers[':method'], headers[':authority'])
    })
    this.#server.on('tlsClientError', (error, socket) => this.#onRefused(error, socket))
    this.#server.on('sessionError', (error) =>
      options.log.debug({ error: sentenceOf(error) }, 'session error'),
    )
    options.identity.onChange(() => this.#server.setSecureContext(options.identity.tlsOptions()))
  }

  get streams(): number {
    return this.#streams
  }

  async listen(): Promise<number> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const { port } = this.#options
    this.#listener.once('error', (error) =>
      reject(
        new EdgeMeshError('bad-config', `Cannot listen on tunnel port ${port}: ${error.message}.`, error),
      ),
    )
    this.#listener.listen(port, resolve)
    await promise
    const address = this.#listener.address()
    return typeof address === 'object' && address !== null ? address.port : port
  }

  /** Serves the tunnel on a socket that was accepted, or that the server has made with `peer`, by its own account. */
  accept(socket: Duplex, peer?: string): void {
    const { remoteAddress = '' } = socket as Socket
    const proven = this.#draining ? undefined : this.#limits.unproven.take(peer ?? networkOf(remoteAddress))
    if (proven === undefined) {
      if (!this.#draining) this.#onLimit(peer ?? remoteAddress, 'too many unfinished handshakes')
      socket.destroy()
      return
    }
    const onTls = (tls: Duplex) => {
      const name = nameOf(tls as Socket)
      this.#unproven.set(name, proven)
      if (peer !== undefined) this.#relayed.add(name)
      tls.once('close', () => {
        this.#relayed.delete(name)
        this.#unproven.delete(name)
      })
      this.#server.emit('connection', tls)
    }
    const onLane = (lane: Duplex) =>
      this.#options.onLane(lane, peer === undefined ? 'direct' : 'relayed', proven)
    this.#sides.onConnection(socket, proven, onTls, onLane)
  }

  /** The server that sessions were relayed by goes away: their peers open new streams elsewhere, open ones may finish. */
  retireRelayed(): void {
    for (const session of this.#sessions.keys())
      if (!session.destroyed && this.#relayed.has(nameOf(session.socket))) session.close()
  }

  /** Takes no more connections or streams; those that are open may finish. */
  drain(): void {
    this.#draining = true
    this.#listener.close()
    for (const session of this.#sessions.keys())
      if (!session.destroyed) session.goaway(constants.NGHTTP2_NO_ERROR)
  }

  close(): void {
    this.drain()
    this.#aborter.abort(new EdgeMeshError('stopping', 'Cannot go on: the sidecar is stopping.'))
    for (const session of this.#sessions.keys()) resetSession(session)
  }

  #onSession(session: ServerHttp2Session): void {
    const { identity, grace, log } = this.#options
    session.on('error', (error) => log.debug({ error: sentenceOf(error) }, 'inbound session broke'))
    try {
      const { certificate, byGrace } = grace.check(session.socket as TLSSocket, 'client')
      const peer = identityOf(certificate, identity.trustDomain)
      this.#unproven.get(nameOf(session.socket))?.()
      const over = this.#limits.sessions.take(peer.podUid)
      if (over === undefined) {
        this.#onLimit(peer.podUid, 'too many sessions')
        resetSession(session, constants.NGHTTP2_ENHANCE_YOUR_CALM)
        return
      }
      if (byGrace) grace.hold(session, Date.parse(certificate.validTo))
      this.#sessions.set(session, peer)
      this.#sides.register(session, peer)
      session.setLocalWindowSize(this.#limits.windowOf(peer.podUid))
      session.setTimeout(silenceMs, () => resetSession(session))
      session.once('close', () => {
        this.#sessions.delete(session)
        over()
        this.#limits.forget(peer.podUid)
      })
    } catch (error) {
      this.#onRefused(error)
      resetSession(session)
    }
  }

  #onLimit(peer: string, why: string): void {
    this.#options.metrics.handshakeFailures.inc({ direction: 'inbound', reason: 'limit' })
    this.#options.log.debug({ peer, reason: 'limit' }, `refused a peer: ${why}`)
  }

  #onRefused(error: unknown, socket?: TLSSocket): void {
    // Node tells of a certificate that it refused by closing the socket; why stands in the socket only.
    const verdict = socket?.authorizationError as unknown as string | undefined
    const reason = handshakeFailureOf(verdict ? { code: verdict } : error)
    this.#options.metrics.handshakeFailures.inc({ direction: 'inbound', reason })
    const line = { reason, from: socket?.remoteAddress, error: verdict ?? sentenceOf(error) }
    this.#options.log.warn(line, 'refused a peer')
    socket?.destroy()
  }

  async #onStream(
    stream: ServerHttp2Stream,
    method: string | undefined,
    authority: string | undefined,
  ): Promise<void> {
    stream.on('error', () => undefined) // a broken stream ends in its close event, where it is accounted for
    const peer =
      stream.session === undefined ? undefined : this.#sessions.get(stream.session as ServerHttp2Session)
    if (peer === undefined) {
      resetStream(stream)
      return
    }
    const entry = this.#options.accessLog.open({
      direction: 'inbound',
      peer: `${spiffeIdOf(peer)} ${peer.podUid}`,
      destination: authority ?? '',
    })
    const decision = this.#draining
      ? { refuse: 'stopping' as const, why: 'the pod is stopping' }
      : decideInbound(method, authority, { ...this.#options.self(), ownPorts: sidecarPorts })
    const over = this.#admit(peer, stream, 'refuse' in decision)
    if ('refuse' in decision || over === undefined) {
      const { refuse, why } = 'refuse' in decision ? decision : tooMuch
      this.#refuse(stream, refuse)
      return entry.close({ closeReason: refuse, error: why })
    }
    this.#streams++
    stream.once('close', () => {
      this.#streams--
      over()
    })
    const { podUid } = peer
    const { session } = stream // it forgets its session when it closes
    await this.#serve(stream, decision, entry, this.#limits.budgetOf(podUid), () => {
      if (!this.#limits.mayGiveUp(podUid))
        this.#onAbuse(podUid, session, 'it opens streams and resets them without end')
    })
  }

  /** Refused streams count for the rate, as they cost as much; what is not admitted is undefined. */
  #admit(
    { podUid }: PodIdentity,
    { session }: ServerHttp2Stream,
    isRefused: boolean,
  ): (() => void) | undefined {
    const mayOpen = this.#limits.mayOpen(podUid)
    if (mayOpen === 'abuse') this.#onAbuse(podUid, session, 'it goes on opening streams that are too many')
    if (mayOpen !== true || isRefused || this.#limits.budgetOf(podUid).full) return undefined
    return this.#limits.streams.take(podUid)
  }

  /** Once for a session: the streams that it still has end after it. */
  #onAbuse(podUid: string, session: Http2Session | undefined, why: string): void {
    if (session === undefined || session.destroyed) return
    this.#onLimit(podUid, why)
    resetSession(session, constants.NGHTTP2_ENHANCE_YOUR_CALM)
  }

  /** `onGivenUp`: the peer has not waited for our answer. */
  async #serve(
    stream: ServerHttp2Stream,
    { host, port }: { host: string; port: number },
    entry: ReturnType<AccessLog['open']>,
    budget: ByteBudget,
    onGivenUp: () => void,
  ): Promise<void> {
    const gone = new AbortController()
    const onClose = () => gone.abort(new EdgeMeshError('reset', 'Cannot go on: the peer gave up.'))
    stream.once('close', onClose)
    try {
      const upstream = await dial({
        host,
        port,
        deadlineMs: upstreamDeadlineMs,
        signal: gone.signal,
        allowHalfOpen: true,
      })
      stream.off('close', onClose)
      entry.connected()
      if (stream.destroyed) {
        upstream.destroy()
        onGivenUp()
      } else stream.respond({ ':status': 200 })
      const onBlocked = (splice: Splice, from: Side) => from === 'b' && budget.blocked(splice)
      const splice = new Splice(stream, upstream, { signal: this.#aborter.signal, onBlocked })
      budget.watch(splice)
      this.#sides.offer(stream, splice)
      const result = await splice.done
      entry.close({ sent: result.bToA, received: result.aToB, closeReason: closeReasonOf(result) })
    } catch (error) {
      const code = codeOf(error)
      if (code === 'refused' || code === 'timeout' || code === 'unreachable') this.#refuse(stream, code)
      else resetStream(stream)
      if (gone.signal.aborted) onGivenUp()
      entry.close({ closeReason: code, error: sentenceOf(error) })
    }
  }

  #refuse(stream: ServerHttp2Stream, failure: ConnectFailure): void {
    this.#options.metrics.inboundRefused.inc({ reason: failure })
    if (!stream.destroyed && !stream.headersSent)
      stream.respond({ ':status': statusOf(failure) }, { endStream: true })
    stream.resume()
  }
}

/** Names a connection, through whatever layers it is looked at. */
function nameOf({
  localPort,
  remoteAddress,
  remotePort,
}: Pick<Socket, 'localPort' | 'remoteAddress' | 'remotePort'>) {
  return `${localPort} ${remoteAddress} ${remotePort}`
}

function closeReasonOf(result: { reason: string; by?: 'a' | 'b' }): string {
  if (result.reason !== 'reset') return result.reason
  return result.by === 'a' ? 'reset by peer' : 'reset by app'
}
