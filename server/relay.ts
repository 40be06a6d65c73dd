import { randomBytes } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { type PodIdentity, spiffeIdOf } from '#shared/identity.ts'
import type { Logger } from '#shared/log.ts'
import { resetStream } from '#shared/reset.ts'
import { type SpliceOptions, spliceSockets } from '#shared/splice.ts'
import {
  forwardedHeader,
  ownerOf,
  relayPath,
  relayProtocol,
  serverProduct,
  ticketHeader,
} from '#shared/wire.ts'
import { alone, type Directory } from './replicas/directory.ts'
import { Forwarder, placeOf } from './replicas/forward.ts'
import type { ServerMetrics } from './server-metrics.ts'

export interface RelayLimits {
  /** Pairs that one pod may have waiting or joined as the one that dials. */
  pairsPerPod: number
  /** Of these, to one peer: nobody can use up what a peer has for all. */
  pairsPerPeer: number
  /** Pairs that all others together may have with one pod. */
  pairsToPod: number
  pairs: number
  /** How long both sides have to join, in ms. */
  joinMs: number
}

export const relayLimits: RelayLimits = {
  pairsPerPod: 256,
  pairsPerPeer: 128,
  pairsToPod: 2_048,
  pairs: 20_000,
  joinMs: 10_000,
}

interface Pair {
  dialer: PodIdentity
  acceptor: PodIdentity
  /** The side that has joined and waits for the other. */
  waiting: Duplex | undefined
  tickets: [dialer: string, acceptor: string]
  timer: NodeJS.Timeout
}

/**
 * Joins two raw TCP streams by one-time tickets. It never dials anything, and cannot read what it carries: the
 * pods' own mTLS goes through it.
 */
export class Relay {
  readonly #replica: string
  readonly #limits: RelayLimits
  readonly #bulk: () => SpliceOptions
  readonly #metrics: ServerMetrics
  readonly #log: Logger
  /** Unspent tickets. */
  readonly #tickets = new Map<string, Pair>()
  /** Pairs whose acceptor has not come yet, by its pod. */
  readonly #awaited = new Map<string, Set<Pair>>()
  /** Pairs waiting or joined, by who dials, who is dialled, and both. */
  readonly #counts = new Map<string, number>()
  readonly #joined = new Map<Pair, AbortController>()
  readonly #directory: Directory
  readonly #forwarder: Forwarder
  #pairs = 0

  /** `bulk` says for a new pair what becomes of it when much flows; `directory` where tickets of others belong. */
  constructor(
    replica: string,
    metrics: ServerMetrics,
    log: Logger,
    bulk: () => SpliceOptions,
    limits: RelayLimits = relayLimits,
    directory: Directory = alone,
  ) {
    this.#replica = replica
    this.#metrics = metrics
    this.#log = log
    this.#bulk = bulk
    this.#limits = limits
    this.#directory = directory
    this.#forwarder = new Forwarder(replica, log, bulk)
    metrics.gauge('relay_forwarded', 'Joins passed on to their owner, running.', () => this.#forwarder.active)
    metrics.gauge('relay_pairs', 'Relayed pairs, waiting or joined.', () => this.#pairs)
  }

  get joinedPairs(): number {
    return this.#joined.size
  }

  /** All that would be lost if we ended now: pairs that wait or are joined, and joins of others that run through us. */
  get busy(): number {
    return this.#pairs + this.#forwarder.active
  }

  /** Tickets for the two sides of one connection, each good for one join; `limit` when a pod has too many. */
  issue(dialer: PodIdentity, acceptor: PodIdentity): { dialer: string; acceptor: string } {
    const { pairsPerPod, pairsPerPeer, pairsToPod, pairs } = this.#limits
    const [from, to, both] = countsOf(dialer, acceptor).map((key) => this.#counts.get(key) ?? 0)
    const full = (who: string) =>
      new EdgeMeshError('limit', `Cannot relay: ${who} too many relayed connections.`)
    if (Number(from) >= pairsPerPod) throw full(`pod ${dialer.podUid} has`)
    if (Number(both) >= pairsPerPeer) throw full(`pod ${dialer.podUid} has, to pod ${acceptor.podUid},`)
    if (Number(to) >= pairsToPod) throw full(`pod ${acceptor.podUid} has`)
    if (this.#pairs >= pairs) throw full('the server has')
    const tickets = { dialer: this.#ticket(), acceptor: this.#ticket() }
    const pair: Pair = {
      dialer,
      acceptor,
      waiting: undefined,
      tickets: [tickets.dialer, tickets.acceptor],
      timer: setTimeout(() => this.#expire(pair), this.#limits.joinMs),
    }
    for (const ticket of pair.tickets) this.#tickets.set(ticket, pair)
    const awaited = this.#awaited.get(acceptor.podUid) ?? new Set()
    this.#awaited.set(acceptor.podUid, awaited.add(pair))
    this.#count(pair, 1)
    this.#metrics.tickets.inc({ outcome: 'issued' }, 2)
    return tickets
  }

  /**
   * Deals with one upgrade request, in the clear or inside TLS. True when its ticket is good, or for its owner to
   * judge: how many of those there may be is the forwarder's to say.
   */
  onUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer): boolean {
    socket.on('error', () => socket.destroy())
    const ticket = request.headers[ticketHeader]
    if (request.method !== 'GET' || request.url !== relayPath || request.headers.upgrade !== relayProtocol) {
      answer(socket, '404 Not Found')
      return false
    }
    if (typeof ticket === 'string' && this.#passedOn(ticket, request, socket, head)) return true
    const pair = typeof ticket === 'string' ? this.#tickets.get(ticket) : undefined
    if (pair === undefined || typeof ticket !== 'string') {
      this.#metrics.tickets.inc({ outcome: 'rejected' })
      this.#log.warn(
        { from: 'remoteAddress' in socket ? socket.remoteAddress : undefined },
        'refused a relay ticket',
      )
      answer(socket, '403 Forbidden')
      return false
    }
    this.#tickets.delete(ticket) // spent by its first use, whatever becomes of it
    if (ticket === pair.tickets[1]) this.#awaitNoMore(pair)
    this.#metrics.tickets.inc({ outcome: 'spent' })
    if (head.length > 0) socket.unshift(head)
    if (pair.waiting === undefined) this.#wait(pair, socket)
    else void this.#join(pair, pair.waiting, socket)
    return true
  }

  /** What a pod has been asked to join and has not: it may not have heard of it. */
  awaitedOf(podUid: string): { ticket: string; from: string }[] {
    const pairs = [...(this.#awaited.get(podUid) ?? [])]
    return pairs.map(({ tickets, dialer }) => ({ ticket: tickets[1], from: dialer.podUid }))
  }

  /** The other side cannot be told: nobody will join. */
  cancel(ticket: string): void {
    const pair = this.#tickets.get(ticket)
    if (pair !== undefined) this.#expire(pair)
  }

  /** Ends what belongs to pods that are there no more, wherever their channels are. */
  revokeAllBut(isKnown: (podUid: string) => boolean): void {
    const pairs = [...new Set(this.#tickets.values()), ...this.#joined.keys()]
    const podUids = new Set(pairs.flatMap(({ dialer, acceptor }) => [dialer.podUid, acceptor.podUid]))
    for (const podUid of podUids) if (!isKnown(podUid)) this.revoke(podUid)
  }

  /** A pod is gone: its unspent tickets are void, and its joined connections end. */
  revoke(podUid: string): void {
    for (const pair of new Set(this.#tickets.values())) if (isOf(pair, podUid)) this.#expire(pair)
    for (const [pair, aborter] of this.#joined) if (isOf(pair, podUid)) aborter.abort()
  }

  close(): void {
    for (const pair of new Set(this.#tickets.values())) this.#expire(pair)
    for (const aborter of this.#joined.values()) aborter.abort()
    this.#forwarder.close()
  }

  /** Another replica's ticket goes to that replica, one hop, at the address that the directory has. */
  #passedOn(ticket: string, request: IncomingMessage, socket: Duplex, head: Buffer): boolean {
    const forwarded = request.headers[forwardedHeader] !== undefined
    const place = placeOf(ownerOf(ticket), this.#replica, this.#directory.others, forwarded)
    if (typeof place === 'string') return false // refused as any ticket that we have not issued
    this.#metrics.tickets.inc({ outcome: 'forwarded' })
    this.#forwarder.forward(request, socket, head, place.forwardTo).catch((error) => {
      this.#log.warn({ to: place.forwardTo, error: sentenceOf(error) }, 'could not pass a join on')
      answer(socket, '502 Bad Gateway')
    })
    return true
  }

  #ticket(): string {
    return `${this.#replica}.${randomBytes(32).toString('base64url')}`
  }

  #wait(pair: Pair, socket: Duplex): void {
    pair.waiting = socket
    socket.write(`HTTP/1.1 102 Processing\r\nServer: ${serverProduct}\r\n\r\n`)
    socket.once('close', () => {
      if (pair.waiting === socket && !this.#joined.has(pair)) this.#expire(pair)
    })
  }

  async #join(pair: Pair, first: Duplex, second: Duplex): Promise<void> {
    clearTimeout(pair.timer)
    const aborter = new AbortController()
    this.#joined.set(pair, aborter)
    const joining = spliceSockets(first, second, { ...this.#bulk(), signal: aborter.signal })
    for (const socket of [first, second]) {
      socket.write(
        `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${relayProtocol}\r\n\r\n`,
      )
    }
    const { aToB, bToA, reason } = await joining
    this.#joined.delete(pair)
    this.#count(pair, -1)
    this.#metrics.relayBytes.inc(aToB + bToA)
    const { dialer, acceptor } = pair
    this.#log.info(
      {
        from: `${spiffeIdOf(dialer)} ${dialer.podUid}`,
        to: `${spiffeIdOf(acceptor)} ${acceptor.podUid}`,
        bytes: aToB + bToA,
        reason,
      },
      'relayed connection',
    )
  }

  #expire(pair: Pair): void {
    clearTimeout(pair.timer)
    this.#awaitNoMore(pair)
    const unspent = pair.tickets.filter((ticket) => this.#tickets.delete(ticket)).length
    if (unspent === 0) return
    this.#metrics.tickets.inc({ outcome: 'expired' }, unspent)
    this.#count(pair, -1)
    if (pair.waiting !== undefined) answer(pair.waiting, '504 Gateway Timeout')
  }

  #awaitNoMore(pair: Pair): void {
    const { podUid } = pair.acceptor
    const awaited = this.#awaited.get(podUid)
    awaited?.delete(pair)
    if (awaited?.size === 0) this.#awaited.delete(podUid)
  }

  #count(pair: Pair, change: 1 | -1): void {
    this.#pairs += change
    for (const key of countsOf(pair.dialer, pair.acceptor)) {
      const count = (this.#counts.get(key) ?? 0) + change
      if (count === 0) this.#counts.delete(key)
      else this.#counts.set(key, count)
    }
  }
}

function countsOf(dialer: PodIdentity, acceptor: PodIdentity): [from: string, to: string, both: string] {
  return [`${dialer.podUid} >`, `> ${acceptor.podUid}`, `${dialer.podUid} > ${acceptor.podUid}`]
}

function isOf(pair: Pair, podUid: string): boolean {
  return pair.dialer.podUid === podUid || pair.acceptor.podUid === podUid
}

const refusal = (status: string) =>
  `HTTP/1.1 ${status}\r\nServer: ${serverProduct}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`

function answer(socket: Duplex, status: string): void {
  if (socket.writable) socket.end(refusal(status))
  socket.resume()
  setTimeout(() => resetStream(socket), 1_000).unref() // a client that does not read its answer keeps nothing open
}
