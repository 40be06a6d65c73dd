import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  constants,
  type SecureClientSessionOptions,
} from 'node:http2'
import type { Duplex } from 'node:stream'
import { type TLSSocket, connect as tlsConnect } from 'node:tls'
import http2Agent from 'http2-wrapper/source/agent.js'
import { codeOf, EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { identityOf, podServerName } from '#shared/identity.ts'
import { withDeadline } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import { resetSession, resetStream } from '#shared/reset.ts'
import { handshakeDeadlineMs, handshakeFailureOf } from '#shared/tls.ts'
import type { Identity } from '../control/identity.ts'
import type { SidecarMetrics } from '../sidecar-metrics.ts'
import { authorityOf, failureOf } from './connect.ts'
import type { OfflineGrace } from './offline-grace.ts'
import { patienceMs, roundTripAfter } from './patience.ts'
import { maxSessionMemory, sessionWindow, streamWindow } from './windows.ts'

/** How long a session may be without a stream before it is closed, in ms (HBONE keeps them 5 minutes). */
const idleMs = 5 * 60_000
/**
 * A session that does not answer a ping in time (see patience) is dead, and its streams are reset. Pings also keep the
 * mappings of NATs, which forget idle connections after minutes.
 */
const pingEveryMs = 4_000
/** When a new stream has no answer after so long, its session is pinged, as a lane is; in ms. */
const suspectMs = 500
/** How often it is looked whether a session with an open ping brings anything, in ms. */
const lookEveryMs = 500
/** Sessions without a stream that are kept over all peers. */
const maxEmptySessions = 64
/** How long dialling a peer may take in all, in ms: joining the relay, TLS and the first SETTINGS. */
const sessionDeadlineMs = 12_000
/** How long the far sidecar may take to answer a CONNECT: its own connect deadline and a long round trip. */
const answerDeadlineMs = 7_000

interface Watched {
  streams: number
  since: number
  idleSince: number
  /** A ping is not answered yet. */
  pinged: boolean
  /** How long pings took lately, in ms. */
  roundTripMs: number | undefined
  /** How much had come when it was looked last, and for how long nothing has. */
  bytesRead: number
  silentMs: number
}

/**
 * HTTP/2 sessions to peers over one route, shared by their streams. A session is to a pod uid, which TLS itself
 * checks as the certificate's DNS name: an address that leads to another pod can never carry a stream.
 */
export class SessionPool {
  readonly #agent = new http2Agent.Agent({ maxEmptySessions, maxCachedTlsSessions: 1 })
  readonly #identity: Identity
  readonly #grace: OfflineGrace
  readonly #metrics: SidecarMetrics
  readonly #log: Logger
  readonly #onEnd: (podUid: string, livedMs: number) => void
  readonly #sessions = new Map<ClientHttp2Session, Watched>()
  /** The same, by peer. */
  readonly #byPod = new Map<string, Set<ClientHttp2Session>>()
  /** When the certificate expired of peers that the grace let in, until their session is there; ms since the epoch. */
  readonly #expired = new Map<string, number>()
  readonly #timer: NodeJS.Timeout
  #closed = false

  /** `onEnd` is told of each session that ends, other than by `close`. */
  constructor(
    identity: Identity,
    grace: OfflineGrace,
    metrics: SidecarMetrics,
    log: Logger,
    onEnd: (podUid: string, livedMs: number) => void = () => undefined,
  ) {
    this.#onEnd = onEnd
    this.#identity = identity
    this.#grace = grace
    this.#metrics = metrics
    this.#log = log
    this.#agent.settings = { enablePush: false, initialWindowSize: streamWindow }
    this.#agent.on('session', (session: ClientHttp2Session) => this.#watch(session))
    this.#timer = setInterval(() => this.#checkAll(), pingEveryMs)
    this.#timer.unref()
  }

  get size(): number {
    return this.#sessions.size
  }

  /** Whether a live session to the peer is there (it may be full; the pool then opens another). */
  has(podUid: string): boolean {
    for (const session of this.#byPod.get(podUid) ?? []) if (isLive(session)) return true
    return false
  }

  /** Whether a live session to the peer takes one more stream. */
  hasRoom(podUid: string): boolean {
    return this.#withRoom(podUid) !== undefined
  }

  /** Makes sure of a session to the peer; `dialPeer` brings the byte stream where there is none. Single-flight. */
  async prepare(podUid: string, dialPeer: () => Promise<Duplex>): Promise<void> {
    await this.#withAgent(podUid, dialPeer, (origin, options) => this.#agent.getSession(origin, options))
  }

  /** Opens a CONNECT stream; resolves once the far sidecar has connected its upstream. */
  async open(
    target: { podUid: string; address: string; port: number },
    dialPeer: () => Promise<Duplex>,
    signal: AbortSignal,
  ): Promise<ClientHttp2Stream> {
    const headers = { ':method': 'CONNECT', ':authority': authorityOf(target.address, target.port) }
    const session = this.#withRoom(target.podUid)
    const stream =
      session?.request(headers, { endStream: false }) ??
      (await this.#withAgent(target.podUid, dialPeer, (origin, options) =>
        this.#agent.request(origin, options, headers, { endStream: false }),
      ))
    stream.on('error', () => undefined) // followed by close, which awaitAnswer and the splice look at
    this.#count(stream)
    const suspicion = setTimeout(
      () => this.#suspect(stream.session as ClientHttp2Session | undefined),
      suspectMs,
    )
    return awaitAnswer(stream, signal).finally(() => clearTimeout(suspicion))
  }

  /** The sessions that are there take no new streams; those that are open may finish. */
  retire(): void {
    for (const session of this.#sessions.keys()) retireSession(session)
  }

  close(): void {
    this.#closed = true
    clearInterval(this.#timer)
    for (const session of this.#sessions.keys()) resetSession(session)
  }

  /** A session that takes one more stream. The agent would find it too, and take longer than the rest of a stream. */
  #withRoom(podUid: string): ClientHttp2Session | undefined {
    for (const session of this.#byPod.get(podUid) ?? []) {
      const most = session.remoteSettings?.maxConcurrentStreams ?? 0
      if (isLive(session) && (this.#sessions.get(session)?.streams ?? most) < most) return session
    }
    return undefined
  }

  #originOf(podUid: string): string {
    return `https://${podServerName(podUid, this.#identity.trustDomain)}`
  }

  /** The origin of a session is the name that its certificate was verified for. */
  #peerOf(session: ClientHttp2Session): string {
    const [around = '', after = ''] = this.#originOf('*').split('*')
    return session.originSet?.[0]?.slice(around.length, -after.length) ?? ''
  }

  /**
   * Calls the agent with how to reach the peer. The agent shares one dial among all that wait for it and has no
   * deadline of its own: a peer that finishes TLS but never sends SETTINGS would hold them for ever.
   */
  async #withAgent<T>(
    podUid: string,
    dialPeer: () => Promise<Duplex>,
    use: (origin: string, options: SecureClientSessionOptions) => Promise<T>,
  ): Promise<T> {
    let socket: TLSSocket | undefined
    const createConnection = async () => {
      socket = await this.#secure(podUid, await dialPeer())
      return socket
    }
    // The agent awaits createConnection; Node's own type does not know that it may be asynchronous.
    const options = { maxSessionMemory, createConnection } as unknown as SecureClientSessionOptions
    try {
      return await withDeadline(
        use(this.#originOf(podUid), options),
        sessionDeadlineMs,
        `reach pod ${podUid}`,
      )
    } catch (error) {
      if (codeOf(error) === 'timeout') socket?.destroy()
      if (isToldToCalmDown(error))
        throw new EdgeMeshError(
          'limit',
          `Cannot reach pod ${podUid}: it has too many sessions of ours.`,
          error,
        )
      throw error
    }
  }

  /** TLS over the dialled stream; resolves only with a peer whose certificate is that of `podUid`. */
  async #secure(podUid: string, stream: Duplex): Promise<TLSSocket> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const socket = tlsConnect({
      ...this.#identity.tlsOptions(),
      socket: stream,
      servername: podServerName(podUid, this.#identity.trustDomain),
      ALPNProtocols: ['h2'],
      rejectUnauthorized: this.#grace.strict,
    })
    // Node puts the port into the session's origin; a peer is named by its pod uid, whatever port it was dialled at.
    Object.defineProperty(socket, 'remotePort', { value: 443 })
    socket.once('secureConnect', resolve)
    socket.on('error', reject)
    socket.once('close', () =>
      reject(
        new EdgeMeshError('reset', `Cannot reach pod ${podUid}: it closed the connection in the handshake.`),
      ),
    )
    try {
      await withDeadline(promise, handshakeDeadlineMs, `finish the TLS handshake with pod ${podUid}`)
      const { certificate, byGrace } = this.#grace.check(socket, 'server')
      const peer = identityOf(certificate, this.#identity.trustDomain)
      if (peer.podUid !== podUid || socket.alpnProtocol !== 'h2') {
        throw new EdgeMeshError('identity-mismatch', `Cannot reach pod ${podUid}: another pod answers there.`)
      }
      if (byGrace) {
        this.#expired.set(podUid, Date.parse(certificate.validTo))
        socket.once('close', () => this.#expired.delete(podUid))
      }
      return socket
    } catch (error) {
      socket.destroy()
      const reason = handshakeFailureOf(error)
      this.#metrics.handshakeFailures.inc({ direction: 'outbound', reason })
      this.#log.warn({ podUid, reason, error: sentenceOf(error) }, 'refused a peer')
      throw error
    }
  }

  #watch(session: ClientHttp2Session): void {
    const podUid = this.#peerOf(session)
    const since = performance.now()
    this.#sessions.set(session, {
      streams: 0,
      since,
      idleSince: since,
      pinged: false,
      roundTripMs: undefined,
      bytesRead: 0,
      silentMs: 0,
    })
    const peers = this.#byPod.get(podUid) ?? new Set()
    this.#byPod.set(podUid, peers.add(session))
    session.setLocalWindowSize(sessionWindow)
    const expired = this.#expired.get(podUid)
    this.#expired.delete(podUid)
    if (expired !== undefined) this.#grace.hold(session, expired)
    session.on('error', (error) => this.#log.debug({ error: sentenceOf(error) }, 'session broke'))
    session.once('goaway', () => retireSession(session))
    session.once('close', () => {
      this.#sessions.delete(session)
      peers.delete(session)
      if (peers.size === 0) this.#byPod.delete(podUid)
      if (!this.#closed) this.#onEnd(podUid, performance.now() - since)
    })
  }

  #count(stream: ClientHttp2Stream): void {
    const watched = stream.session && this.#sessions.get(stream.session as ClientHttp2Session)
    if (!watched) return
    watched.streams++
    stream.once('close', () => {
      watched.streams--
      watched.idleSince = performance.now()
    })
  }

  #checkAll(): void {
    for (const [session, watched] of this.#sessions) {
      if (watched.streams === 0 && performance.now() - watched.idleSince > idleMs) session.close()
      else if (!watched.pinged) this.#ping(session, watched)
    }
  }

  #ping(session: ClientHttp2Session, watched: Watched): void {
    if (session.destroyed || session.closed) return
    watched.bytesRead = session.socket.bytesRead
    watched.silentMs = 0
    const timer = setInterval(() => this.#look(session, watched), lookEveryMs)
    timer.unref()
    watched.pinged = session.ping((error, tookMs) => {
      clearInterval(timer)
      watched.pinged = false
      if (error === null) watched.roundTripMs = roundTripAfter(watched.roundTripMs, tookMs)
    })
    if (!watched.pinged) clearInterval(timer)
  }

  /**
   * Ends a session that answers no ping and brings nothing else. Silence is counted in looks, not by the clock: where this
   * process was starved, it is late itself and not the peer. Behind bulk an answer may be long on its way.
   */
  #look(session: ClientHttp2Session, watched: Watched): void {
    if (!isLive(session)) return
    const { bytesRead } = session.socket
    watched.silentMs = bytesRead > watched.bytesRead ? 0 : watched.silentMs + lookEveryMs
    watched.bytesRead = bytesRead
    if (watched.silentMs <= patienceMs(watched.roundTripMs)) return
    this.#log.info('a session is dead: no answer to its ping')
    session.destroy(new EdgeMeshError('timeout', 'Cannot go on: the session to the peer is dead.'))
  }

  /** A stream waits for its answer: is it the far app that is slow, or is nobody there any more? */
  #suspect(session: ClientHttp2Session | undefined): void {
    const watched = session && this.#sessions.get(session)
    if (session !== undefined && watched?.pinged === false) this.#ping(session, watched)
  }
}

/** Node tells of the code of a GOAWAY in words only. */
function isToldToCalmDown(error: unknown): boolean {
  return sentenceOf(error).includes(`error code ${constants.NGHTTP2_ENHANCE_YOUR_CALM}`)
}

function isLive(session: ClientHttp2Session): boolean {
  return !session.destroyed && !session.closed
}

/** The agent goes on choosing a session that is closing, unless it bears the agent's own mark for it. */
function retireSession(session: ClientHttp2Session): void {
  const mark = Object.getOwnPropertySymbols(session).find((s) => s.description === 'gracefullyClosing')
  if (mark !== undefined) Object.assign(session, { [mark]: true })
  if (isLive(session)) session.close()
}

/** Waits for the status of a CONNECT; anything but 200 rejects with the code of what happened. */
async function awaitAnswer(stream: ClientHttp2Stream, signal: AbortSignal): Promise<ClientHttp2Stream> {
  const { promise, resolve, reject } = Promise.withResolvers<number>()
  const onClose = () =>
    reject(new EdgeMeshError('reset', 'Cannot open the stream: the session to the peer broke.'))
  const onAbort = () => reject(signal.reason)
  stream.once('response', (headers) => resolve(headers[':status'] ?? 0))
  stream.once('close', onClose)
  signal.addEventListener('abort', onAbort, { once: true })
  if (signal.aborted) onAbort()
  try {
    const status = await withDeadline(promise, answerDeadlineMs, 'open the stream')
    if (status === 200) return stream
    const failure = failureOf(status)
    throw new EdgeMeshError(failure, `Cannot reach the endpoint: its sidecar answers ${status} (${failure}).`)
  } catch (error) {
    resetStream(stream)
    throw error
  } finally {
    stream.off('close', onClose)
    signal.removeEventListener('abort', onAbort)
  }
}
