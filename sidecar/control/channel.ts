import { readFile } from 'node:fs/promises'
import WebSocket from 'ws'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { serverNameOf } from '#shared/identity.ts'
import { fullJitter, pause } from '#shared/lifecycle.ts'
import { renewalDelayMs } from '#shared/lifetimes.ts'
import type { Logger } from '#shared/log.ts'
import { type Nat, natOf } from '#shared/nat.ts'
import { Secret } from '#shared/secret.ts'
import { createCertificateRequest, tlsFloor } from '#shared/tls.ts'
import {
  type Address,
  type CertificateRequest,
  type ClientMessage,
  closeCodes,
  controlPath,
  controlProtocol,
  decodeServerMessage,
  maxServerFrame,
  type ServerMessage,
} from '#shared/wire.ts'
import type { ServerAddress, SidecarConfig } from '../config.ts'
import type { SidecarMetrics } from '../sidecar-metrics.ts'
import type { Identity } from './identity.ts'

/** Reconnect delays in ms, full jitter: short, since relayed connections wait for the server to be back. */
const reconnectBaseMs = 100
const reconnectCapMs = 1_000
/** After a refusal (token, unknown pod) there is no hurry. */
const refusedCapMs = 10_000
const connectDeadlineMs = 3_000
/** The server pings every 15 s; silence of this length means that the channel is dead. */
const silenceMs = 40_000

export interface ChannelOptions {
  config: Pick<
    SidecarConfig,
    'servers' | 'tokenFile' | 'trustBundle' | 'trustBundleFile' | 'trustDomain' | 'podIPs' | 'hostIP' | 'node'
  >
  identity: Identity
  /** What the hello says beside the request: resume point and subscriptions. */
  hello: () => Pick<Extract<ClientMessage, { type: 'hello' }>, 'resume' | 'subscriptions'>
  /** Every message of the server but `welcome` and `certificate`, which the channel deals with itself. */
  onMessage: (message: ServerMessage) => void
  /** A server has welcomed us. */
  onUp?: () => void
  /** The channel that was up is down. */
  onLost: () => void
  metrics: SidecarMetrics
  log: Logger
}

/** The control channel to the server: keeps itself connected, and the identity renewed. */
export class ControlChannel {
  readonly #options: ChannelOptions
  readonly #aborter = new AbortController()
  #socket: WebSocket | undefined
  #up = false
  #welcomes = 0
  /** Told when the channel comes up. */
  readonly #waiting = new Set<() => void>()
  #server: ServerAddress
  #localPort: number | undefined
  #nat: Nat | undefined
  #running: Promise<void> | undefined
  #renewal: NodeJS.Timeout | undefined

  constructor(options: ChannelOptions) {
    this.#options = options
    this.#server = options.config.servers[0] as ServerAddress
  }

  /** Whether the server has welcomed us and the channel is open. */
  get up(): boolean {
    return this.#up
  }

  /** How often a server has welcomed us: two moments with the same count had the same channel. */
  get welcomes(): number {
    return this.#welcomes
  }

  /** Resolves once the channel is up; rejects with `not-connected` when that takes longer than `ms`. */
  async untilUp(ms: number): Promise<void> {
    if (this.#up) return
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

  /** What is between us and the server, as far as it could see. */
  get nat(): Nat | undefined {
    return this.#nat
  }

  start(): void {
    this.#running ??= this.#run()
  }

  /** Returns false when the server is away. */
  send(message: ClientMessage): boolean {
    if (!this.#up || this.#socket?.readyState !== WebSocket.OPEN) return false
    this.#socket.send(JSON.stringify(message))
    return true
  }

  /** Starts over with a new hello, when what the server sends does not follow on what we have. */
  reconnect(): void {
    this.#socket?.close(closeCodes.goingAway)
  }

  async close(): Promise<void> {
    this.#aborter.abort()
    clearTimeout(this.#renewal)
    this.#socket?.terminate()
    await this.#running
  }

  async #run(): Promise<void> {
    const { log, config, metrics } = this.#options
    const { signal } = this.#aborter
    for (let attempt = 0; !signal.aborted; attempt++) {
      this.#server = config.servers[attempt % config.servers.length] as ServerAddress
      let capMs = reconnectCapMs
      let waitMs = 0
      try {
        const close = await this.#session()
        if (this.#up) attempt = 0
        metrics.controlConnects.inc({ outcome: this.#up ? 'welcome' : 'refused' })
        if (!this.#up && close.code !== closeCodes.goingAway) capMs = refusedCapMs
        waitMs = close.comeBackMs
        if (!signal.aborted)
          log.warn({ server: this.#server, code: close.code, reason: close.reason }, 'lost the server')
      } catch (error) {
        metrics.controlConnects.inc({ outcome: 'failed' })
        const line = { server: this.#server, attempt, error: sentenceOf(error) }
        if (!signal.aborted)
          log[attempt % 50 === 0 ? 'warn' : 'debug'](line, 'cannot reach the server; trying again')
      }
      if (this.#up) {
        this.#up = false
        this.#options.onLost()
      }
      await pause(waitMs + fullJitter(attempt, reconnectBaseMs, capMs), signal)
    }
  }

  /** One connection, from dialling to its close. */
  async #session(): Promise<{ code: number; reason: string; comeBackMs: number }> {
    const { host, port } = this.#server
    const { config, log } = this.#options
    const [ca, request] = await Promise.all([this.#roots(), this.#request()])
    const authority = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
    const tls = { ...tlsFloor, ca, servername: serverNameOf(config.trustDomain) }
    const socket = new WebSocket(`wss://${authority}${controlPath}`, controlProtocol, {
      ...tls,
      handshakeTimeout: connectDeadlineMs,
      maxPayload: maxServerFrame,
      perMessageDeflate: false,
      skipUTF8Validation: true,
    })
    this.#socket = socket
    const { promise, resolve, reject } = Promise.withResolvers<{
      code: number
      reason: string
      comeBackMs: number
    }>()
    let comeBackMs = 0
    const silence = setTimeout(() => socket.terminate(), silenceMs)
    socket.on('ping', () => silence.refresh())
    socket.on('upgrade', (response) => {
      this.#localPort = response.socket.localPort
    })
    socket.on('open', () => this.#hello(socket, request))
    socket.on('message', (data) => {
      silence.refresh()
      try {
        const message = decodeServerMessage(String(data))
        if (message.type === 'goingAway') comeBackMs = message.comeBackMs
        this.#onMessage(message)
      } catch (error) {
        log.error({ error: sentenceOf(error) }, 'the server sent what we cannot take; reconnecting')
        socket.close(closeCodes.badMessage)
      }
    })
    socket.on('error', (error) => (this.#up ? socket.terminate() : reject(error)))
    socket.on('close', (code, reason) => resolve({ code, reason: String(reason), comeBackMs }))
    return promise.finally(() => clearTimeout(silence))
  }

  #hello(socket: WebSocket, request: CertificateRequest): void {
    const { config, hello } = this.#options
    const message: ClientMessage = {
      type: 'hello',
      v: 1,
      request,
      podIPs: config.podIPs,
      ...(config.hostIP === undefined ? {} : { hostIP: config.hostIP }),
      ...(config.node === undefined ? {} : { node: config.node }),
      ...(this.#localPort === undefined ? {} : { localPort: this.#localPort }),
      ...hello(),
    }
    socket.send(JSON.stringify(message))
  }

  #onMessage(message: ServerMessage): void {
    const { identity, onMessage, log } = this.#options
    if (message.type === 'welcome' || message.type === 'certificate') {
      identity.replace(message.certificate)
      const { notAfter, lifetimeMs = Math.max(0, notAfter - Date.now()) } = message.certificate
      this.#scheduleRenewal(lifetimeMs, performance.now())
      if (message.type === 'welcome') {
        this.#up = true
        this.#onObserved(message.observed)
        this.#welcomes++
        for (const resolve of this.#waiting) resolve()
        this.#options.onUp?.()
        log.info({ server: this.#server, replica: message.replica }, 'connected to the server')
      }
    } else if (message.type === 'error')
      log.error({ code: message.code, refused: message.message }, 'the server refuses us')
    else onMessage(message)
  }

  #onObserved(observed: Address | undefined): void {
    const localPort = this.#localPort
    if (observed === undefined || localPort === undefined) return
    this.#nat = natOf([{ localPort, observed }], this.#options.config.podIPs)
  }

  /** The roots that the pod was started with, and those that came with the certificate since. */
  async #roots(): Promise<string[]> {
    const { config, identity } = this.#options
    const first = config.trustBundle ?? (await readFile(config.trustBundleFile, 'utf8'))
    const learned = identity.certificate?.trustBundle
    return learned === undefined ? [first] : [first, learned]
  }

  /** A fresh token for each request: the kubelet rotates the file. */
  async #request(): Promise<CertificateRequest> {
    const { config, identity } = this.#options
    const token = await readFile(config.tokenFile, 'utf8').catch((error) => {
      throw new EdgeMeshError(
        'unauthenticated',
        `Cannot read the token ${config.tokenFile}: ${error.message}.`,
        error,
      )
    })
    return createCertificateRequest(identity.keys, new Secret(token.trim()))
  }

  /** `since`: when the certificate came, by the monotonic clock. */
  #scheduleRenewal(lifetimeMs: number, since: number): void {
    clearTimeout(this.#renewal)
    const inMs = renewalDelayMs(lifetimeMs, performance.now() - since)
    this.#renewal = setTimeout(() => this.#renew(lifetimeMs, since), inMs)
    this.#renewal.unref()
  }

  /** Without the server nothing is to be done: each new hello brings a new certificate. */
  async #renew(lifetimeMs: number, since: number): Promise<void> {
    try {
      this.send({ type: 'renew', request: await this.#request() })
    } catch (error) {
      this.#options.log.warn({ error: sentenceOf(error) }, 'cannot renew the certificate yet')
    }
    this.#scheduleRenewal(lifetimeMs, since)
  }
}
