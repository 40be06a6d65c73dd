import type { Duplex } from 'node:stream'
import { codeOf, EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { withDeadline } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import type { ServerMessage } from '#shared/wire.ts'
import type { ControlChannel } from '../control/channel.ts'
import { Shares } from '../shares.ts'
import type { SidecarMetrics } from '../sidecar-metrics.ts'
import { JoinFailed, RelayJoiner } from './relay-join.ts'

const ticketDeadlineMs = 5_000
/** A connection that needs the relay waits so long for a server that is away: restarts take less. */
const serverDeadlineMs = 3_000
/** Relayed dials under way at once; beyond it they fail at once. */
const maxPending = 256
/** Joins under way that one peer asked for, and all: who asks and does not come takes nobody else's. */
const maxJoins = { ofOne: 64, all: 512 }

type Answer = Extract<ServerMessage, { type: 'ticket' | 'failed' }>

/** Relayed connections: asks the server for tickets, and joins what peers ask of us. */
export class RelayClient {
  readonly #channel: ControlChannel
  readonly #metrics: SidecarMetrics
  readonly #log: Logger
  readonly #pending = new Map<number, { welcomes: number; answer: (answer: Answer) => void }>()
  readonly #joiner: RelayJoiner
  readonly #joins = new Shares(maxJoins.ofOne, maxJoins.all)
  #lastId = 0

  constructor(channel: ControlChannel, metrics: SidecarMetrics, log: Logger) {
    this.#channel = channel
    this.#metrics = metrics
    this.#log = log
    this.#joiner = new RelayJoiner({ tls: () => channel.serverTls(), log })
  }

  get available(): boolean {
    return this.#channel.up
  }

  /**
   * A byte stream to the peer's tunnel endpoint, through the server; once more if the server went away meanwhile. With
   * `unlessNear` it rejects with `PeerIsNear` where the server sees both come from one public address.
   */
  async dial(podUid: string, unlessNear = false): Promise<Duplex> {
    const { welcomes } = this.#channel
    try {
      return await this.#dialOnce(podUid, unlessNear)
    } catch (error) {
      if (!(error instanceof JoinFailed) && this.#channel.up && this.#channel.welcomes === welcomes)
        throw error
      return this.#dialOnce(podUid, unlessNear)
    }
  }

  async #dialOnce(podUid: string, unlessNear: boolean): Promise<Duplex> {
    try {
      const ticket = await this.#ticket(podUid, unlessNear) // from whichever server there is by then
      const stream = await this.#joiner.join(this.#channel.server, ticket)
      this.#metrics.relayJoins.inc({ side: 'dialer', outcome: 'joined' })
      return stream
    } catch (error) {
      const outcome = error instanceof PeerIsNear ? 'near' : codeOf(error)
      this.#metrics.relayJoins.inc({ side: 'dialer', outcome })
      throw error
    }
  }

  /** The server that our requests were sent to, up to that welcome, is gone: nobody will answer them. */
  onLost(upTo: number): void {
    for (const [id, { welcomes, answer }] of this.#pending)
      if (welcomes <= upTo)
        answer({ type: 'failed', id, code: 'peer-absent', message: 'the server went away' })
  }

  /** The server's answer to one of our requests. */
  onAnswer(answer: Answer): void {
    this.#pending.get(answer.id)?.answer(answer)
  }

  /** A peer, `from`, asks for us: joins and hands the stream to `serve`. Never rejects. */
  async join(ticket: string, from: string, serve: (stream: Duplex, from: string) => void): Promise<void> {
    const over = this.#joins.take(from)
    if (over === undefined) return this.#metrics.relayJoins.inc({ side: 'acceptor', outcome: 'limit' })
    try {
      serve(await this.#joiner.join(this.#channel.server, ticket), from)
      this.#metrics.relayJoins.inc({ side: 'acceptor', outcome: 'joined' })
    } catch (error) {
      this.#metrics.relayJoins.inc({ side: 'acceptor', outcome: codeOf(error) })
      this.#log.info({ error: sentenceOf(error) }, 'could not join the relay for a peer')
    } finally {
      over()
    }
  }

  async #ticket(podUid: string, unlessNear: boolean): Promise<string> {
    this.#lastId = (this.#lastId % 1_000_000_000) + 1
    const id = this.#lastId
    const { promise, resolve } = Promise.withResolvers<Answer>()
    const fail = (code: 'not-connected' | 'limit' | 'unreachable', why: string) =>
      new EdgeMeshError(code, `Cannot relay to pod ${podUid}: ${why}.`)
    if (this.#pending.size >= maxPending) throw fail('limit', 'too many requests are waiting')
    try {
      await this.#channel.untilUp(serverDeadlineMs)
      this.#pending.set(id, { welcomes: this.#channel.welcomes, answer: resolve })
      if (!this.#channel.send({ type: 'relay', id, podUid, ...(unlessNear && { unlessNear }) }))
        throw fail('not-connected', 'the server is away')
      const { welcomes } = this.#channel
      const answer = await withDeadline(
        promise,
        ticketDeadlineMs,
        `get a relay ticket for pod ${podUid}`,
      ).catch((error) => {
        // A server that lives answers within less, if only that the peer is absent.
        if (this.#channel.welcomes === welcomes) this.#channel.giveUp()
        throw error
      })
      if (answer.type === 'ticket') return answer.ticket
      if (answer.code === 'near') throw new PeerIsNear('unreachable', `Cannot relay: ${answer.message}.`)
      throw fail(answer.code === 'limit' ? 'limit' : 'unreachable', answer.message)
    } finally {
      this.#pending.delete(id)
    }
  }
}

/** The peer is behind the same public address: the cloud should carry nothing if it can be reached without. */
export class PeerIsNear extends EdgeMeshError {}
