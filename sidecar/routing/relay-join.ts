import { type ClientRequest, request } from 'node:http'
import { connect } from 'node:net'
import type { Duplex } from 'node:stream'
import { type ConnectionOptions, connect as connectTls } from 'node:tls'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { pause } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import { relayPath, relayProtocol, serverProduct, ticketHeader } from '#shared/wire.ts'
import type { ServerAddress } from '../config.ts'

/** How long the other side may take to join, in ms; the server's own deadline is 10 s. */
const joinDeadlineMs = 11_000
/** A server takes a join, or refuses it, at once: after so much silence it is asked inside TLS as well, in ms. */
const signDeadlineMs = 2_000
/** For so long joins go inside TLS where the clear was of no use; the network may be another one by then. In ms. */
const tlsForMs = 10 * 60_000

/** The ticket was of no use: its owner, or who passes joins on to it, may have gone away meanwhile. */
export class JoinFailed extends EdgeMeshError {}

export interface RelayJoinerOptions {
  /** How the server is verified. */
  tls: () => Promise<ConnectionOptions>
  log: Logger
  signDeadlineMs?: number
  /** The monotonic clock, in ms; for tests. */
  now?: () => number
}

/**
 * Redeems relay tickets. In the clear, as the server then joins the two connections in its kernel, and what goes over
 * them is the pods' own mTLS anyway; inside TLS, as the control channel is, where a network lets nothing else out.
 */
export class RelayJoiner {
  readonly #tls: () => Promise<ConnectionOptions>
  readonly #log: Logger
  readonly #signDeadlineMs: number
  readonly #now: () => number
  /** Until when joins of a server go inside TLS, by its address. */
  readonly #tlsUntil = new Map<string, number>()

  constructor(options: RelayJoinerOptions) {
    this.#tls = options.tls
    this.#log = options.log
    this.#signDeadlineMs = options.signDeadlineMs ?? signDeadlineMs
    this.#now = options.now ?? (() => performance.now())
  }

  /** Resolves with the byte stream to the other side once both have joined; rejects with `JoinFailed`. */
  async join(server: ServerAddress, ticket: string): Promise<Duplex> {
    const signal = AbortSignal.timeout(joinDeadlineMs)
    if (this.#goesInside(server)) {
      const secured = await this.#secured(server, ticket, signal)
      if (!(await secured.heard)) this.#tlsUntil.delete(nameOf(server))
      return secured.joined
    }
    const plain = inTheClear(server, ticket, signal)
    const isHeard = await Promise.race([plain.heard, pause(this.#signDeadlineMs).then(() => false)])
    if (isHeard) return plain.joined
    const secured = await this.#secured(server, ticket, signal)
    try {
      const stream = await Promise.any([plain.joined, secured.joined]) // a ticket is good for one of them only
      if (!plain.wasHeard) void this.#learn(server)
      return stream
    } catch (error) {
      const [inClear, inTls] = (error as AggregateError).errors
      const why = `${sentenceOf(inClear)} Nor inside TLS: ${sentenceOf(inTls)}`
      throw new JoinFailed('unreachable', why)
    } finally {
      for (const attempt of [plain, secured]) attempt.giveUp()
    }
  }

  #goesInside(server: ServerAddress): boolean {
    return (this.#tlsUntil.get(nameOf(server)) ?? 0) > this.#now()
  }

  /** Asks once more in the clear, with no good ticket: the server may have been away just then, and is not now. */
  async #learn(server: ServerAddress): Promise<void> {
    const again = inTheClear(server, 'none', AbortSignal.timeout(this.#signDeadlineMs))
    if ((await again.heard) || this.#goesInside(server)) return
    this.#tlsUntil.set(nameOf(server), this.#now() + tlsForMs)
    this.#log.info({ server }, 'the network lets only TLS through to the server: the relay goes inside it')
  }

  async #secured(server: ServerAddress, ticket: string, signal: AbortSignal): Promise<Attempt> {
    const options = { ...(await this.#tls()), ...socketOptions, ...server }
    return new Attempt(server, ticket, signal, () => connectTls(options))
  }
}

const socketOptions = { noDelay: true, keepAlive: true, keepAliveInitialDelay: 30_000 }
const nameOf = ({ host, port }: ServerAddress) => `${host} ${port}`

function inTheClear(server: ServerAddress, ticket: string, signal: AbortSignal): Attempt {
  return new Attempt(server, ticket, signal, () => connect({ ...server, ...socketOptions }))
}

/** One request for the server to join us. */
class Attempt {
  readonly joined: Promise<Duplex>
  /** Whether the server, and nobody on the way, has answered; false once it cannot any more. */
  readonly heard: Promise<boolean>
  wasHeard = false
  readonly #request: ClientRequest

  constructor(server: ServerAddress, ticket: string, signal: AbortSignal, createConnection: () => Duplex) {
    const joined = Promise.withResolvers<Duplex>()
    const heard = Promise.withResolvers<boolean>()
    this.joined = joined.promise
    this.joined.catch(() => undefined) // told to whoever waits for it
    this.heard = heard.promise
    this.#request = request({
      path: relayPath,
      createConnection,
      headers: { connection: 'Upgrade', upgrade: relayProtocol, [ticketHeader]: ticket },
      signal,
    })
    const hear = (isServer: boolean) => {
      this.wasHeard ||= isServer
      heard.resolve(isServer)
    }
    const fail = (why: string, cause?: unknown) => {
      hear(false)
      joined.reject(new JoinFailed('unreachable', `Cannot join the relay at ${server.host}: ${why}.`, cause))
    }
    this.#request.once('information', ({ headers }) => hear(headers.server === serverProduct))
    this.#request.once('upgrade', (_response, socket, head) => {
      hear(true)
      if (head.length > 0) socket.unshift(head)
      joined.resolve(socket)
    })
    this.#request.once('response', (response) => {
      response.resume()
      hear(response.headers.server === serverProduct)
      fail(`it answers ${response.statusCode}`)
      this.#request.destroy()
    })
    this.#request.on('error', (error) => fail(sentenceOf(error), error))
    this.#request.once('close', () => fail('it closed the connection'))
    this.#request.end()
  }

  /** Ends what has not been joined. */
  giveUp(): void {
    this.#request.destroy()
  }
}
