import { readFile } from 'node:fs/promises'
import { type ConnectionOptions, createSecureContext, type SecureContext } from 'node:tls'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { serverNameOf } from '#shared/identity.ts'
import { fullJitter, pause } from '#shared/lifecycle.ts'
import { renewalDelayMs } from '#shared/lifetimes.ts'
import type { Logger } from '#shared/log.ts'
import { type Nat, natOf } from '#shared/nat.ts'
import { Secret } from '#shared/secret.ts'
import { createCertificateRequest, digestOf, tlsFloor } from '#shared/tls.ts'
import {
  type Address,
  type CertificateRequest,
  type ClientMessage,
  closeCodes,
  type IssuedCertificate,
  type ServerMessage,
} from '#shared/wire.ts'
import type { ServerAddress, SidecarConfig } from '../config.ts'
import type { SidecarMetrics } from '../sidecar-metrics.ts'
import { Connection, Refused, race, Unserved } from './connection.ts'
import type { Identity } from './identity.ts'
import { Servers } from './servers.ts'

/** Reconnect delays in ms, full jitter: short, since relayed connections wait for the server to be back. */
const reconnectBaseMs = 100
const reconnectCapMs = 1_000
/** Where a server is there but has no time for all who come at once: who dials again and again takes that from all. */
const busyCapMs = 3_000
/** A certificate that ends so soon by our clock is renewed with the next hello: our timers stand still while a machine sleeps. */
const endsSoonMs = 60_000
/** After a refusal (token, unknown pod) there is no hurry. */
const refusedCapMs = 10_000

export interface ChannelOptions {
  config: Pick<
    SidecarConfig,
    | 'servers'
    | 'tokenFile'
    | 'trustBundle'
    | 'trustBundleFile'
    | 'trustDomain'
    | 'podUid'
    | 'podIPs'
    | 'hostIP'
    | 'node'
  >
  identity: Identity
  /** What the hello says beside the request: resume point and subscriptions. */
  hello: () => Pick<Extract<ClientMessage, { type: 'hello' }>, 'resume' | 'subscriptions'>
  /** Every message of the server but `welcome` and `certificate`, which the channel deals with itself. */
  onMessage: (message: ServerMessage) => void
  /** A server has welcomed us. */
  onUp?: () => void
  /** A connection is gone: what was asked while `welcomes` was so high will not be answered. */
  onLost: (welcomes: number) => void
  /** We have another server than before, which is going away: its relayed sessions will end soon. */
  onMoved: () => void
  metrics: SidecarMetrics
  log: Logger
}

/**
 * The control channel to the server: keeps itself connected, and the identity renewed. Of several servers it stays with
 * the first that answered; one that is going away serves on until there is another.
 */
export class ControlChannel {
  readonly #options: ChannelOptions
  readonly #aborter = new AbortController()
  readonly #servers: Servers
  #current: Connection | undefined
  /** That and all that are being opened. */
  readonly #connections = new Set<Connection>()
  #welcomes = 0
  /** Told when the channel comes up. */
  readonly #waiting = new Set<() => void>()
  #server: ServerAddress
  /** What servers are verified with, made once for the roots that there are. */
  #verifier: { roots: string; context: SecureContext } | undefined
  #nat: Nat | undefined
  #running: Promise<void> | undefined
  #renewal: NodeJS.Timeout | undefined
  /** The certificate is to be renewed, or there is none, or nobody knows since when it is there. */
  #isDue = true

  constructor(options: ChannelOptions) {
    this.#options = options
    const { servers, podUid } = options.config
    this.#servers = new Servers(servers, podUid)
    this.#server = servers[0] as ServerAddress
  }

  /** Whether the server has welcomed us and the channel is open. */
  get up(): boolean {
    return this.#current !== undefined
  }

  /** How often a server has welcomed us: two moments with the same count had the same channel. */
  get welcomes(): number {
    return this.#welcomes
  }

  /** Resolves once the channel is up; rejects with `not-connected` when that takes longer than `ms`. */
  async untilUp(ms: number): Promise<void> {
    if (this.up) return
    const waiting = Promise.withResolvers<void>()
    const late = () =>
      waiting.reject(new EdgeMeshError('not-connected', 'Cannot use the relay: the server is away.'))
    const timer = setTimeout(late, ms)
    this.#waiting.add(waiting.resolve)
    try {
      await waiting.promise
    } finally {
      clearTimeout(timer)
      this.#waiting.delete(waiting.resolve)
    }
  }

  /** The server of the present (or last) channel; relay tickets are redeemed there. */
  get server(): ServerAddress {
    return this.#server
  }

  /** How any connection to a server verifies it. */
  async serverTls(): Promise<ConnectionOptions> {
    const ca = await this.#roots()
    const roots = ca.join('\n')
    if (this.#verifier?.roots !== roots)
      this.#verifier = { roots, context: createSecureContext({ ...tlsFloor, ca }) }
    return {
      secureContext: this.#verifier.context,
      servername: serverNameOf(this.#options.config.trustDomain),
    }
  }

  /** What is between us and the server, as far as it could see. */
  get nat(): Nat | undefined {
    return this.#nat
  }

  start(): void {
    this.#running ??= this.#run()
  }

  /** Returns false when the server is away. */
  send(message: ClientMessage): boolean {
    return this.#current?.send(message) ?? false
  }

  /** Starts over with a new hello, when what the server sends does not follow on what we have. */
  reconnect(): void {
    this.#current?.close()
  }

  /** The server does not answer what it always answers: gives it up now, and not after its silence. */
  giveUp(): void {
    this.#servers.avoid(this.#server, performance.now())
    this.#current?.terminate()
  }

  async close(): Promise<void> {
    this.#aborter.abort()
    clearTimeout(this.#renewal)
    for (const connection of this.#connections) connection.terminate()
    await this.#running
  }

  async #run(): Promise<void> {
    const { log } = this.#options
    const { signal } = this.#aborter
    for (let connection = await this.#welcomed(); connection !== undefined; ) {
      const leave = await this.#serve(connection)
      if (leave !== undefined) {
        log.info({ server: connection.server, withinMs: leave }, 'the server is going away')
        this.#servers.avoid(connection.server, performance.now())
        const patience = pause(leave, signal)
        await (this.#servers.count === 1 ? patience : Promise.race([patience, connection.closed]))
      }
      const next = await this.#welcomed()
      if (leave !== undefined && next !== undefined) this.#options.onMoved()
      connection.close()
      connection = next
    }
  }

  /** Resolves when the connection is closed, or with the ms within which to go elsewhere. */
  async #serve(connection: Connection): Promise<number | undefined> {
    const { welcomes } = this
    const closed = connection.closed.then(({ code, reason }) => {
      const was = this.#current === connection
      if (was) this.#current = undefined
      this.#options.onLost(welcomes)
      if (was && !this.#aborter.signal.aborted)
        this.#options.log.warn({ server: connection.server, code, reason }, 'lost the server')
      return undefined
    })
    return Promise.race([connection.leave, closed])
  }

  /** The next connection that has its welcome; undefined when we are told to stop. */
  async #welcomed(): Promise<Connection | undefined> {
    const { log, metrics } = this.#options
    const { signal } = this.#aborter
    let capMs = reconnectCapMs
    for (let attempt = 0; !signal.aborted; attempt++) {
      if (attempt > 0 || this.#welcomes > 0) await pause(fullJitter(attempt, reconnectBaseMs, capMs), signal)
      try {
        const connection = await this.#open()
        metrics.controlConnects.inc({ outcome: 'welcome' })
        return connection
      } catch (error) {
        capMs = error instanceof Unserved ? busyCapMs : reconnectCapMs
        const refused = error instanceof Refused && error.closeCode !== closeCodes.goingAway
        metrics.controlConnects.inc({ outcome: refused ? 'refused' : 'failed' })
        if (signal.aborted) return undefined
        const line = { attempt, error: sentenceOf(error) }
        if (refused) log.warn(line, 'lost the server')
        else log[attempt % 50 === 0 ? 'warn' : 'debug'](line, 'cannot reach the server; trying again')
        if (refused) await pause(fullJitter(attempt, reconnectBaseMs, refusedCapMs), signal)
      }
    }
    return undefined
  }

  /** Dials the servers in their order, and is welcomed by the first that answers. */
  async #open(): Promise<Connection> {
    const { hello, identity, log } = this.#options
    const [tls, token] = await Promise.all([this.serverTls(), this.#token()])
    const take = (from: Connection, message: ServerMessage) => this.#onMessage(from, message)
    const connection = await race(
      this.#servers.order(performance.now()),
      (server) => {
        if (this.#aborter.signal.aborted) throw new EdgeMeshError('stopping', 'Cannot dial: we are stopping.')
        const connection = new Connection(server, tls, take, log)
        this.#connections.add(connection)
        void connection.closed.then(() => this.#connections.delete(connection))
        return connection
      },
      (server) => this.#servers.avoid(server, performance.now()),
    )
    try {
      const request = createCertificateRequest(identity.keys, token)
      await connection.hello({ type: 'hello', ...this.#self(request, connection.localPort), ...hello() })
      return connection
    } catch (error) {
      this.#servers.avoid(connection.server, performance.now())
      connection.terminate()
      throw error
    }
  }

  /** From here on everything goes over this one. What was subscribed to since its hello is made up for. */
  #onWelcome(connection: Connection, welcome: Extract<ServerMessage, { type: 'welcome' }>): void {
    const { hello, log } = this.#options
    const { server, tookMs } = connection
    if (welcome.certificate !== undefined) this.#keep(welcome.certificate)
    this.#current = connection
    this.#server = server
    this.#welcomes++
    this.#servers.opened(server, tookMs)
    log.info({ server, replica: welcome.replica }, 'connected to the server')
    for (const service of hello().subscriptions)
      if (!connection.subscribed.includes(service)) connection.send({ type: 'subscribe', service })
    for (const resolve of this.#waiting) resolve()
    this.#onObserved(connection.localPort, welcome.observed)
    this.#options.onUp?.()
  }

  #keep(certificate: IssuedCertificate): void {
    this.#options.identity.replace(certificate)
    this.#isDue = false
    const { notAfter, lifetimeMs = Math.max(0, notAfter - Date.now()) } = certificate
    this.#scheduleRenewal(lifetimeMs, performance.now())
  }

  #self(request: CertificateRequest, localPort: number | undefined) {
    const { podIPs, hostIP, node } = this.#options.config
    const { certificate } = this.#options.identity
    return {
      v: 1 as const,
      request,
      podIPs,
      ...(hostIP === undefined ? {} : { hostIP }),
      ...(node === undefined ? {} : { node }),
      ...(localPort === undefined ? {} : { localPort }),
      ...(this.#isDue || certificate === undefined || certificate.notAfter - Date.now() < endsSoonMs
        ? {}
        : { certifiedBy: digestOf(certificate.trustBundle) }),
    }
  }

  #onMessage(connection: Connection, message: ServerMessage): void {
    const { onMessage, log } = this.#options
    if (message.type === 'welcome') this.#onWelcome(connection, message)
    else if (message.type === 'certificate') {
      this.#keep(message.certificate)
    } else if (message.type === 'error')
      log.error({ code: message.code, refused: message.message }, 'the server refuses us')
    else if (connection === this.#current || !isState(message)) onMessage(message)
  }

  #onObserved(localPort: number | undefined, observed: Address | undefined): void {
    if (observed === undefined || localPort === undefined) return
    this.#nat = natOf([{ localPort, observed }], this.#options.config.podIPs)
  }

  /** The roots that the pod was started with, and those that came with the certificate since where they are others. */
  async #roots(): Promise<string[]> {
    const { config, identity } = this.#options
    const first = config.trustBundle ?? (await readFile(config.trustBundleFile, 'utf8'))
    const learned = identity.certificate?.trustBundle
    return learned === undefined || learned.trim() === first.trim() ? [first] : [first, learned]
  }

  /** Read for each request: the kubelet rotates the file. */
  async #token(): Promise<Secret> {
    const { config } = this.#options
    const token = await readFile(config.tokenFile, 'utf8').catch((error) => {
      throw new EdgeMeshError(
        'unauthenticated',
        `Cannot read the token ${config.tokenFile}: ${error.message}.`,
        error,
      )
    })
    return new Secret(token.trim())
  }

  /** `since`: when the certificate came, by the monotonic clock. */
  #scheduleRenewal(lifetimeMs: number, since: number): void {
    clearTimeout(this.#renewal)
    const inMs = renewalDelayMs(lifetimeMs, performance.now() - since)
    this.#renewal = setTimeout(() => this.#renew(lifetimeMs, since), inMs)
    this.#renewal.unref()
  }

  /** Without the server nothing is to be done: the next hello asks for it. */
  async #renew(lifetimeMs: number, since: number): Promise<void> {
    this.#isDue = true
    try {
      const token = await this.#token()
      this.send({ type: 'renew', request: createCertificateRequest(this.#options.identity.keys, token) })
    } catch (error) {
      this.#options.log.warn({ error: sentenceOf(error) }, 'cannot renew the certificate yet')
    }
    this.#scheduleRenewal(lifetimeMs, since)
  }
}

/** What only the server of the present channel may say; a former one's would not follow on what we have. */
function isState({ type }: ServerMessage): boolean {
  return type === 'index' || type === 'endpoints' || type === 'self'
}
