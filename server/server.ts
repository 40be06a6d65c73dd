import { once } from 'node:events'
import { createServer as createHttpServer, type Server as HttpServer, type IncomingMessage } from 'node:http'
import { createServer as createHttpsServer, type Server as HttpsServer } from 'node:https'
import { createServer, type Server as NetServer, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import type { SecureContextOptions, TLSSocket } from 'node:tls'
import { WebSocketServer } from 'ws'
import type { CertificateAuthority } from '#shared/authority/certificate-authority.ts'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { isServerCertificate } from '#shared/identity.ts'
import { pause } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import { remoteOf } from '#shared/nat.ts'
import { handshakeDeadlineMs, tlsFloor } from '#shared/tls.ts'
import {
  type Address,
  controlPath,
  controlProtocol,
  maxClientFrame,
  observedPath,
  relayPath,
  rendezvousPath,
  replicaPath,
  replicaProtocol,
} from '#shared/wire.ts'
import { Admission, type AdmissionLimits, admissionLimits } from './admission.ts'
import type { Hub } from './hub.ts'
import type { Relay } from './relay.ts'
import type { ServerMetrics } from './server-metrics.ts'
import type { SealedStream } from './tls/sealed-stream.ts'
import { Terminator } from './tls/terminator.ts'

export interface Deadlines {
  /** For a connection's first byte, and for the headers of a request, in ms. */
  firstBytesMs: number
  handshakeMs: number
}

export const deadlines: Deadlines = { firstBytesMs: 5_000, handshakeMs: handshakeDeadlineMs }

/** At the end, for clients to take what was written to them, in ms. */
const lastWordsMs = 1_000
const tlsRecordHandshake = 0x16
const serverLeafMs = 30 * 86_400_000
const renewServerMs = serverLeafMs / 2
/** How often it is looked whether the roots are still the same, by which other replicas are checked. */
const rootsEveryMs = 30_000
/** How long clients may take to go elsewhere, in ms, at most; after it those that have not are cut off. */
const moveMs = 2_000

export interface ServerOptions {
  port: number
  hub: Hub
  relay: Relay
  authority: CertificateAuthority
  metrics: ServerMetrics
  log: Logger
  deadlines?: Deadlines
  admission?: AdmissionLimits
  /** Another file for the worker that does TLS handshakes; for tests. */
  handshakeWorker?: URL
}

/** The one public port: TLS carries the control channel, HTTP upgrades, in the clear or inside TLS, join the relay. */
export class Server {
  readonly #options: ServerOptions
  readonly #deadlines: Deadlines
  readonly #net: NetServer
  readonly #plain: HttpServer
  /** Where the worker that does TLS handshakes cannot run. */
  readonly #tls: HttpsServer
  /** HTTP inside TLS that the worker has begun. */
  readonly #secured: HttpServer
  readonly #terminator: Terminator
  readonly #webSockets: WebSocketServer
  /** Connections that owe us their request. */
  readonly #expected = new WeakMap<Duplex, NodeJS.Timeout>()
  readonly #sockets = new Set<Socket>()
  readonly #admission: Admission
  #renewal: NodeJS.Timeout | undefined
  #credentials: SecureContextOptions = {}
  #renewAt = 0
  #draining = false

  constructor(options: ServerOptions) {
    this.#options = options
    this.#deadlines = options.deadlines ?? deadlines
    const http = { maxHeaderSize: 8_192 }
    this.#plain = createHttpServer(http)
    this.#tls = createHttpsServer({
      ...http,
      ...tlsFloor,
      handshakeTimeout: this.#deadlines.handshakeMs,
      requestCert: true, // other replicas show one; pods prove by their token who they are
      rejectUnauthorized: false,
    })
    this.#secured = createHttpServer(http)
    this.#terminator = new Terminator({
      ...(options.handshakeWorker === undefined ? {} : { worker: options.handshakeWorker }),
      handshakeMs: this.#deadlines.handshakeMs,
      log: options.log,
      onSecured: (stream) => {
        this.#expectUpgrade(stream)
        this.#secured.emit('connection', stream)
      },
      isBusy: () => options.hub.isBusy,
      onFailed: (why) => options.log.debug({ error: why }, 'TLS handshake failed'),
    })
    this.#webSockets = new WebSocketServer({
      noServer: true,
      maxPayload: maxClientFrame,
      perMessageDeflate: false,
      clientTracking: false,
      handleProtocols: (offered) => [controlProtocol, replicaProtocol].find((p) => offered.has(p)) ?? false,
    })
    this.#net = createServer({
      allowHalfOpen: true,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: 30_000,
    })
    const limits = options.admission ?? admissionLimits
    this.#net.maxConnections = limits.connections
    this.#admission = new Admission(limits)
    const unproven = 'Connections that have shown no token or ticket yet.'
    options.metrics.gauge('connections_unproven', unproven, () => this.#admission.unproven)
    this.#wire()
  }

  /** Resolves with the port once both protocols are served. */
  async listen(): Promise<number> {
    await this.#renewCertificate()
    this.#keepCertificate()
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const { port } = this.#options
    this.#net.once('error', (error) =>
      reject(new EdgeMeshError('bad-config', `Cannot listen on port ${port}: ${error.message}.`, error)),
    )
    this.#net.listen({ port, backlog: 4_096 }, resolve)
    await promise
    const address = this.#net.address()
    return typeof address === 'object' && address !== null ? address.port : port
  }

  get connections(): number {
    return this.#sockets.size
  }

  /** Our key and certificate and the roots: what other replicas are shown. */
  get credentials(): SecureContextOptions {
    return this.#credentials
  }

  /**
   * Takes no new clients. Where there are other replicas, clients have time to go there, and relay joins go on being
   * taken meanwhile; then what is joined may finish, all within `drainMs`.
   */
  async close(drainMs: number): Promise<void> {
    const { hub, relay } = this.#options
    clearInterval(this.#renewal)
    this.#draining = true
    const until = performance.now() + drainMs
    if (hub.hasOthers && hub.channels > 0) {
      const withinMs = Math.min(moveMs, drainMs / 2)
      await hub.sendAway(withinMs)
      // Twice that: who goes last has to get there, too.
      const moved = Math.min(until, performance.now() + 2 * withinMs)
      while (hub.channels > 0 && performance.now() < moved) await pause(50)
    }
    const closed = once(this.#net, 'close') // that is: its last connection too
    if (!hub.hasOthers) {
      this.#net.close()
      await hub.goAway()
    }
    while (relay.busy > 0 && performance.now() < until) await pause(50)
    if (hub.hasOthers) this.#net.close()
    await hub.goAway()
    relay.close()
    await Promise.race([closed, pause(lastWordsMs)])
    for (const socket of this.#sockets) socket.destroy()
    await this.#terminator.close()
  }

  #wire(): void {
    const { hub, relay, log } = this.#options
    this.#net.on('connection', (socket) => this.#onConnection(socket))
    this.#net.on('error', (error) => log.error({ error: sentenceOf(error) }, 'cannot accept connections'))
    this.#plain.on('upgrade', (request, socket, head) => {
      this.#expectNothing(socket)
      const isTaken =
        request.url === rendezvousPath
          ? hub.meetings.onUpgrade(request, socket)
          : relay.onUpgrade(request, socket, head)
      if (isTaken) this.#prove(remoteOf(request.socket))
    })
    this.#tls.on('secureConnection', (socket) => this.#expectUpgrade(socket))
    this.#plain.on('request', (request, response) => {
      const observed = request.url === observedPath ? remoteOf(request.socket) : undefined
      if (observed === undefined) response.writeHead(404, { connection: 'close' }).end()
      else response.end(JSON.stringify(observed))
    })
    for (const http of [this.#tls, this.#secured])
      http.on('request', (_request, response) => response.writeHead(404, { connection: 'close' }).end())
    for (const http of [this.#plain, this.#tls, this.#secured]) {
      http.on('clientError', (_error, socket) => socket.destroy())
    }
    this.#tls.on('tlsClientError', (error) => log.debug({ error: sentenceOf(error) }, 'TLS handshake failed'))
    for (const http of [this.#tls, this.#secured])
      http.on('upgrade', (request, socket, head) => this.#onUpgrade(request, socket, head))
  }

  #onUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    const { hub, relay } = this.#options
    this.#expectNothing(socket)
    socket.on('error', () => socket.destroy())
    const protocol = request.headers['sec-websocket-protocol']
    const remote = remoteOf(request.socket) // the channel must not keep the request alive
    if (request.url === controlPath && protocol === controlProtocol && !this.#draining)
      this.#webSockets.handleUpgrade(request, socket, head, (webSocket) =>
        hub.accept(webSocket, socket, remote, () => this.#prove(remote)),
      )
    else if (request.url === replicaPath && protocol === replicaProtocol && this.#isReplica(socket))
      this.#webSockets.handleUpgrade(request, socket, head, (webSocket) => {
        this.#prove(remote)
        hub.acceptReplica(webSocket)
      })
    else if (request.url === relayPath) {
      if (relay.onUpgrade(request, socket, head)) this.#prove(remote)
    } else
      refuse(
        socket,
        request.url === controlPath && this.#draining ? '503 Service Unavailable' : '404 Not Found',
      )
  }

  /** TLS has verified the certificate by our roots; only servers have one of that name. */
  #isReplica(socket: Duplex): boolean {
    const secured = socket as TLSSocket | SealedStream
    if (!secured.authorized) return false
    return isServerCertificate(secured.getPeerX509Certificate(), this.#options.hub.trustDomain)
  }

  #onConnection(socket: Socket): void {
    socket.on('error', () => socket.destroy())
    const remote = remoteOf(socket)
    if (remote === undefined || !this.#admission.enter(remote)) {
      this.#options.metrics.connections.inc({ kind: 'limited' })
      socket.destroy()
      return
    }
    this.#sockets.add(socket)
    socket.once('close', () => {
      this.#sockets.delete(socket)
      this.#admission.leave(remote)
    })
    this.#tellApart(socket)
  }

  /** Who has shown a token or ticket counts no more for its address. */
  #prove(remote: Address | undefined): void {
    if (remote !== undefined) this.#admission.prove(remote)
  }

  /** Hands the connection to TLS or HTTP by its first byte, which is put back. */
  #tellApart(socket: Socket): void {
    const { metrics } = this.#options
    const late = setTimeout(() => {
      metrics.connections.inc({ kind: 'silent' })
      socket.destroy()
    }, this.#deadlines.firstBytesMs)
    socket.once('close', () => clearTimeout(late))
    socket.once('readable', () => {
      clearTimeout(late)
      const bytes: Buffer | null = socket.read()
      if (bytes === null) {
        socket.destroy() // closed without a byte
        return
      }
      const isTls = bytes[0] === tlsRecordHandshake
      metrics.connections.inc({ kind: isTls ? 'tls' : 'plain' })
      if (isTls)
        socket.allowHalfOpen = false // only relayed streams end one direction at a time
      else this.#expectUpgrade(socket)
      if (isTls && this.#terminator.available) {
        this.#terminator.take(socket, bytes, this.#options.hub.isReplica(socket.remoteAddress))
        return
      }
      socket.unshift(bytes)
      ;(isTls ? this.#tls : this.#plain).emit('connection', socket)
    })
  }

  /** Node enforces header deadlines only on servers that listen by themselves; these are handed their sockets. */
  #expectUpgrade(socket: Duplex): void {
    const late = setTimeout(() => socket.destroy(), this.#deadlines.firstBytesMs)
    this.#expected.set(socket, late)
    socket.once('close', () => clearTimeout(late))
  }

  #expectNothing(socket: Duplex): void {
    clearTimeout(this.#expected.get(socket))
  }

  /** Our certificate, renewed at half of its life and whenever the roots change. */
  async #renewCertificate(): Promise<void> {
    const { authority } = this.#options
    const { key, certificate } = await authority.issueServer(serverLeafMs)
    this.#credentials = {
      ...tlsFloor,
      key: key.reveal(),
      cert: certificate.chain,
      ca: certificate.trustBundle,
    }
    this.#tls.setSecureContext(this.#credentials)
    await this.#terminator.use({
      key: key.reveal(),
      certificate: certificate.chain,
      roots: certificate.trustBundle,
    })
    this.#renewAt = Date.now() + renewServerMs
  }

  #keepCertificate(): void {
    const { authority, log } = this.#options
    this.#renewal = setInterval(() => {
      if (Date.now() < this.#renewAt && this.#credentials.ca === authority.trustBundle) return
      this.#renewCertificate().catch((error) =>
        log.error({ error: sentenceOf(error) }, 'cannot renew our certificate'),
      )
    }, rootsEveryMs)
    this.#renewal.unref()
  }
}

function refuse(socket: Duplex, status: string): void {
  socket.once('finish', () => socket.destroy()) // no deadline waits for the client to close
  socket.end(`HTTP/1.1 ${status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`)
}
