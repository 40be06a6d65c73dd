import type { ClientRequest } from 'node:http'
import type { ConnectionOptions } from 'node:tls'
import WebSocket from 'ws'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { pause } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import {
  type ClientMessage,
  closeCodes,
  controlPath,
  controlProtocol,
  decodeServerMessage,
  maxServerFrame,
  type ServerMessage,
} from '#shared/wire.ts'
import type { ServerAddress } from '../config.ts'

/** For TCP, in ms. */
const connectDeadlineMs = 3_000
/**
 * How long a server that took the connection may take until the channel is open, in ms. One that thousands come back to
 * serves them in turn, and whoever leaves and comes again loses its place, and takes the time of others.
 */
const openDeadlineMs = 30_000
/** The server pings every 5 s. One that is silent for longer is pinged, and dead when that brings nothing either; in ms. */
const quietMs = 6_000
const silenceMs = 9_000
/** How long the servers before it in the order have for themselves, in ms each. */
const headStartMs = 50
/** How long the server may take to verify the token and sign, in ms. */
const welcomeDeadlineMs = 12_000

export interface Closed {
  code: number
  reason: string
}

/** One connection to one server, from dialling to its close. */
export class Connection {
  readonly server: ServerAddress
  readonly closed: Promise<Closed>
  /** How long it took to open, in ms. */
  tookMs = 0
  /** Of our end; the server is told, so that it sees what a NAT makes of it. */
  localPort: number | undefined
  readonly #socket: WebSocket
  readonly #opened = Promise.withResolvers<void>()
  readonly #welcomed = Promise.withResolvers<void>()
  readonly #leave = Promise.withResolvers<number>()
  #refusal = ''
  /** Somebody took the TCP connection. */
  #reached = false
  /** Services that its hello subscribed to. */
  subscribed: readonly string[] = []

  /** `onMessage` gets every message but `goingAway`; what it throws ends the connection. */
  constructor(
    server: ServerAddress,
    tls: ConnectionOptions,
    onMessage: (from: Connection, message: ServerMessage) => void,
    log: Logger,
  ) {
    this.server = server
    const { host, port } = server
    const authority = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
    const socket = new WebSocket(`wss://${authority}${controlPath}`, controlProtocol, {
      ...tls,
      finishRequest: (request) => this.#dial(request),
      maxPayload: maxServerFrame,
      perMessageDeflate: false,
      skipUTF8Validation: true,
    })
    this.#socket = socket
    const began = performance.now()
    const closed = Promise.withResolvers<Closed>()
    this.closed = closed.promise
    for (const { promise } of [this.#opened, this.#welcomed]) promise.catch(() => undefined) // told to whoever waits for it
    let quiet: NodeJS.Timeout | undefined
    let silence: NodeJS.Timeout | undefined
    const heard = () => {
      quiet?.refresh()
      silence?.refresh()
    }
    socket.on('ping', heard)
    socket.on('pong', heard)
    socket.once('upgrade', (response) => {
      this.localPort = response.socket.localPort
    })
    socket.once('open', () => {
      quiet = setTimeout(() => this.isOpen && socket.ping(), quietMs)
      silence = setTimeout(() => socket.terminate(), silenceMs)
      this.tookMs = performance.now() - began
      this.#opened.resolve()
    })
    socket.on('message', (data) => {
      heard()
      try {
        const message = decodeServerMessage(String(data))
        if (message.type === 'error') this.#refusal = message.message
        if (message.type === 'goingAway') this.#leave.resolve(message.comeBackMs)
        else onMessage(this, message)
        if (message.type === 'welcome') this.#welcomed.resolve()
      } catch (error) {
        log.error({ error: sentenceOf(error) }, 'the server sent what we cannot take; reconnecting')
        socket.close(closeCodes.badMessage)
      }
    })
    socket.on('error', (error) => {
      this.#opened.reject(this.#reached ? new Unserved(authority, error) : error)
      socket.terminate()
    })
    socket.once('close', (code, reason) => {
      clearTimeout(quiet)
      clearTimeout(silence)
      this.#opened.reject(new EdgeMeshError('not-connected', `Cannot reach ${authority}: it closed.`))
      this.#welcomed.reject(new Refused(code, this.#refusal || String(reason) || `closed with ${code}`))
      closed.resolve({ code, reason: String(reason) })
    })
  }

  #dial(request: ClientRequest): void {
    const give = (ms: number) => setTimeout(() => request.destroy(new Error('it took too long')), ms)
    let late = give(connectDeadlineMs)
    this.#opened.promise.catch(() => undefined).finally(() => clearTimeout(late))
    request.once('socket', (socket) =>
      socket.once('connect', () => {
        this.#reached = true
        clearTimeout(late)
        late = give(openDeadlineMs)
      }),
    )
    request.end()
  }

  /** Resolves once the server talks our protocol; rejects when it cannot be reached. */
  get opened(): Promise<void> {
    return this.#opened.promise
  }

  /** Resolves when the server is going away, with the ms within which to go elsewhere. */
  get leave(): Promise<number> {
    return this.#leave.promise
  }

  get isOpen(): boolean {
    return this.#socket.readyState === WebSocket.OPEN
  }

  /** Returns false when it is not open. */
  send(message: ClientMessage): boolean {
    if (!this.isOpen) return false
    this.#socket.send(JSON.stringify(message))
    return true
  }

  /** Says hello; resolves once `onMessage` has taken the welcome. */
  async hello(message: Extract<ClientMessage, { type: 'hello' }>): Promise<void> {
    this.subscribed = message.subscriptions
    const late = setTimeout(() => this.terminate(), welcomeDeadlineMs)
    this.send(message)
    try {
      await this.#welcomed.promise
    } finally {
      clearTimeout(late)
    }
  }

  /** Takes leave; the server answers, or is cut off. */
  close(code: number = closeCodes.goingAway): void {
    this.#socket.close(code)
    void pause(1_000).then(() => this.#socket.terminate())
  }

  terminate(): void {
    this.#socket.terminate()
  }
}

/** There is a server, and it had no time for us. */
export class Unserved extends EdgeMeshError {
  constructor(authority: string, cause: Error) {
    super('not-connected', `Cannot open a channel to ${authority}: it does not answer.`, cause)
  }
}

/** The server was reached and does not want us. */
export class Refused extends EdgeMeshError {
  readonly closeCode: number

  constructor(closeCode: number, why: string) {
    super('unauthenticated', `Cannot be welcomed by the server: ${why}.`)
    this.closeCode = closeCode
  }
}

/**
 * Opens the first server that answers: each has a head start of some ms before the next, and one that fails lets the
 * next begin at once. The others are let go. Rejects with what the last one said.
 */
export async function race(
  servers: readonly ServerAddress[],
  open: (server: ServerAddress) => Connection,
  failed: (server: ServerAddress) => void,
): Promise<Connection> {
  const decided = new AbortController()
  const dialled: Connection[] = []
  let before: Promise<unknown> = Promise.resolve()
  const attempts = servers.map(async (server, i) => {
    const turn = before
    const done = Promise.withResolvers<void>()
    before = done.promise
    if (i > 0) await Promise.race([pause(i * headStartMs, decided.signal), turn])
    if (decided.signal.aborted) throw new EdgeMeshError('stopping', 'Cannot go on: another was faster.')
    const connection = open(server)
    dialled.push(connection)
    try {
      await connection.opened
      return connection
    } catch (error) {
      if (!decided.signal.aborted) failed(server)
      throw error
    } finally {
      done.resolve()
    }
  })
  try {
    const first = await Promise.any(attempts)
    for (const other of dialled) if (other !== first) other.terminate()
    return first
  } catch (error) {
    throw error instanceof AggregateError ? error.errors.at(-1) : error
  } finally {
    decided.abort()
  }
}
