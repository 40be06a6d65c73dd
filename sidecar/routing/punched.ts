import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { codeOf, EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { withDeadline } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import { type Mapping, remoteOf } from '#shared/nat.ts'
import type { Opening, ServerMessage } from '#shared/wire.ts'
import type { ControlChannel } from '../control/channel.ts'
import { Shares } from '../shares.ts'
import type { SidecarMetrics } from '../sidecar-metrics.ts'
import { holdPort } from './local-port.ts'
import { openSimultaneously } from './simultaneous-open.ts'

/** How long the server may take to call both sides, and then to see both, in ms; its own deadline is 5 s. */
const answerDeadlineMs = 6_000
/** Punched connections being made at once: asked for by us, by one peer, and by all of them. */
const maxPending = { ofUs: 32, ofOne: 8, ofPeers: 32 }
const us = 'us'

type Answer = Extract<ServerMessage, { type: 'meet' | 'unpunched' }>
type Message = Answer | Extract<ServerMessage, { type: 'rendezvous' }>

/**
 * Punched connections. Each has a local port of its own, which a connection to the server holds meanwhile: so a pair
 * of pods can have several, in both directions, and what a failed one left behind in a NAT is in nobody's way.
 */
export class Puncher {
  readonly #channel: ControlChannel
  readonly #serve: (stream: Duplex, from: string) => void
  readonly #mapping: () => Mapping | undefined
  readonly #signal: AbortSignal
  readonly #metrics: SidecarMetrics
  readonly #log: Logger
  readonly #answers = new Map<number, (answer: Answer) => void>()
  readonly #openings = new Map<string, (opening: Opening) => void>()
  readonly #dials = new Shares(maxPending.ofUs)
  readonly #accepts = new Shares(maxPending.ofOne, maxPending.ofPeers)
  #lastId = 0

  constructor(options: {
    channel: ControlChannel
    /** Serves the tunnel on a socket that a peer has asked for. */
    serve: (stream: Duplex, from: string) => void
    /** How our NAT maps, once that was measured. */
    mapping: () => Mapping | undefined
    signal: AbortSignal
    metrics: SidecarMetrics
    log: Logger
  }) {
    this.#channel = options.channel
    this.#serve = options.serve
    this.#mapping = options.mapping
    this.#signal = options.signal
    this.#metrics = options.metrics
    this.#log = options.log
  }

  /** A byte stream to the peer's tunnel endpoint through the NATs; `attempt` counts those that failed before. */
  async dial(podUid: string, attempt: number): Promise<Duplex> {
    return this.#counted('dialer', this.#dials.take(us), async () => {
      const ticket = await this.#call(podUid, attempt)
      try {
        const socket = await this.#open(ticket)
        const met = remoteOf(socket)
        this.#channel.send({ type: 'punched', ticket, open: true, ...(met === undefined ? {} : { met }) })
        return socket
      } catch (error) {
        this.#channel.send({ type: 'punched', ticket, open: false })
        throw error
      }
    })
  }

  onMessage(message: Message): void {
    if (message.type === 'rendezvous') this.#openings.get(message.ticket)?.(message.opening)
    else if (message.type === 'meet' && message.id === undefined)
      void this.#accept(message.ticket, message.from ?? '')
    else if (message.id !== undefined) this.#answers.get(message.id)?.(message)
  }

  /** The server that our requests were sent to is gone: nobody will answer them. */
  onLost(): void {
    for (const [id, answer] of this.#answers)
      answer({ type: 'unpunched', id, code: 'peer-absent', message: 'the server went away' })
  }

  async #accept(ticket: string, from: string): Promise<void> {
    try {
      const over = this.#accepts.take(from)
      this.#serve(await this.#counted('acceptor', over, () => this.#open(ticket)), from)
    } catch (error) {
      this.#log.debug({ error: sentenceOf(error) }, 'no punched connection to a peer that asked for one')
    }
  }

  async #counted<T>(
    side: 'dialer' | 'acceptor',
    over: (() => void) | undefined,
    make: () => Promise<T>,
  ): Promise<T> {
    try {
      if (over === undefined)
        throw new EdgeMeshError('limit', 'Cannot punch: too many attempts are under way.')
      const made = await make()
      this.#metrics.punches.inc({ side, outcome: 'open' })
      return made
    } catch (error) {
      this.#metrics.punches.inc({ side, outcome: codeOf(error) })
      throw error
    } finally {
      over?.()
    }
  }

  /** The ticket of a rendezvous to which the peer is called too. */
  async #call(podUid: string, attempt: number): Promise<string> {
    this.#lastId = (this.#lastId % 1_000_000_000) + 1
    const id = this.#lastId
    const { promise, resolve } = Promise.withResolvers<Answer>()
    this.#answers.set(id, resolve)
    try {
      if (!this.#channel.send({ type: 'punch', id, podUid, attempt }))
        throw new EdgeMeshError('not-connected', `Cannot punch to pod ${podUid}: the server is away.`)
      const answer = await withDeadline(promise, answerDeadlineMs, `meet pod ${podUid}`)
      if (answer.type === 'meet') return answer.ticket
      const code = answer.code === 'limit' ? 'limit' : 'unreachable'
      throw new EdgeMeshError(code, `Cannot punch to pod ${podUid}: ${answer.message}.`)
    } finally {
      this.#answers.delete(id)
    }
  }

  async #open(ticket: string): Promise<Socket> {
    const { promise, resolve } = Promise.withResolvers<Opening>()
    this.#openings.set(ticket, resolve)
    try {
      const held = await holdPort(this.#channel.server, ticket, this.#mapping())
      try {
        const opening = await withDeadline(promise, answerDeadlineMs, 'meet the peer')
        return await openSimultaneously(held.localPort, opening, this.#signal)
      } finally {
        held.socket.destroy()
      }
    } finally {
      this.#openings.delete(ticket)
    }
  }
}
