import { X509Certificate } from 'node:crypto'
import type { Duplex } from 'node:stream'
import { descriptorOf } from '#shared/descriptor.ts'
import { codeOf, EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { identityOf, podServerName, spiffeIdOf } from '#shared/identity.ts'
import type { Logger } from '#shared/log.ts'
import { close, dup } from '#shared/pump/libc.ts'
import { PeerMemory } from '../routing/peers.ts'
import type { SidecarMetrics } from '../sidecar-metrics.ts'
import { introduce, lanePreamble, welcome } from '../tunnel/side.ts'
import type { ExpressOrder, ExpressReport, LaneRoute, NewLane } from './messages.ts'
import { laneRoutes } from './messages.ts'

/** Lanes that peers may have here: in all, and each pod. */
const maxInbound = 2_000
const maxInboundOfPeer = 8
/** Of which it is not known yet who made them. */
const maxUnnamed = 256
const maxOutbound = 1_000
/** A peer to which no lane can be made, or with which none lasts, is left alone for so long, in ms; longer each time. */
const rests = { baseMs: 1_000, maxMs: 60_000 }

export interface LaneKeeperOptions {
  trustDomain: string
  /** Whether the worker runs, or could be started; resolves once it takes orders. */
  ready: () => Promise<boolean>
  /** Keeps account of a descriptor that becomes the worker's; false when there is no worker, or no room. */
  own: (fd: number) => boolean
  tell: (order: ExpressOrder) => void
  metrics: SidecarMetrics
  log: Logger
  /** The monotonic clock, in ms; for tests. */
  now?: () => number
}

interface Kept {
  id: number
  route: LaneRoute
  /** As dialler: the peer that is meant. As acceptor: the peer, once it is known. */
  podUid: string | undefined
  isDialer: boolean
  /** Since when it has been in use. */
  upMs: number | undefined
  /** Whether it has come up, once that is known. */
  readonly cameUp: PromiseWithResolvers<boolean>
  /** Ends its share of what strangers may have here. */
  readonly proven: () => void
  /** It takes no new streams. */
  isRetired: boolean
}

/** The main thread's side of lanes: dials and takes them, and says who may be at their other end. */
export class LaneKeeper {
  readonly #options: LaneKeeperOptions
  readonly #lanes = new Map<number, Kept>()
  /** What is being dialled, by peer. */
  readonly #dialling = new Set<string>()
  /** Of routes on which lanes failed lately. */
  readonly #memory = new PeerMemory(Math.random, rests)
  readonly #now: () => number
  #lastId = 0
  #draining = false

  constructor(options: LaneKeeperOptions) {
    this.#options = options
    this.#now = options.now ?? (() => performance.now())
  }

  /** Lanes that are open. */
  get size(): number {
    return this.#lanes.size
  }

  /** Makes a lane to the peer by this route, unless there is one as good; whether there is one then. Never rejects. */
  async ensure(podUid: string, route: LaneRoute, dial: () => Promise<Duplex>): Promise<boolean> {
    this.#leaveWorse(podUid, route)
    const known = this.#asGood(podUid, route)
    if (known !== undefined) return known.cameUp.promise
    const isResting = (this.#memory.blockedUntil(podUid)[route] ?? 0) > this.#now()
    if (this.#draining || this.#dialling.has(podUid) || isResting) return false
    if (this.#count((l) => l.isDialer) >= maxOutbound) return false
    this.#dialling.add(podUid)
    let lane: Kept | undefined
    try {
      if (!(await this.#options.ready())) return false
      const socket = await dial()
      await introduce(socket, lanePreamble, `open a lane to pod ${podUid}`)
      const serverName = podServerName(podUid, this.#options.trustDomain)
      lane = this.#hand(descriptorOf(socket), route, { podUid, serverName })
      socket.destroy() // the worker has a duplicate
      if (lane === undefined)
        throw new EdgeMeshError('limit', `Cannot open a lane to pod ${podUid}: there is no descriptor left.`)
    } catch (error) {
      this.#onFailed(podUid, route, error)
      return false
    } finally {
      this.#dialling.delete(podUid)
    }
    return lane.cameUp.promise
  }

  /** Takes a peer's lane, from its preamble on; calls `proven` once the peer is known or the lane over. */
  async take(socket: Duplex, route: LaneRoute, proven: () => void): Promise<void> {
    const isFull =
      this.#count((l) => !l.isDialer) >= maxInbound ||
      this.#count((l) => !l.isDialer && l.upMs === undefined) >= maxUnnamed
    if (this.#draining || isFull || !(await this.#options.ready())) {
      socket.destroy()
      return
    }
    welcome(socket, (fd) => {
      socket.off('close', proven) // its closing means nothing any more
      if (this.#draining || this.#hand(fd, route, undefined, proven) === undefined) proven()
    })
  }

  /** Lanes of the route take no new streams; those that are open may finish. */
  retire(route: LaneRoute): void {
    if (this.#lanes.size > 0) this.#options.tell({ type: 'retire', route })
  }

  /** Peers open no more streams. */
  drain(): void {
    this.#draining = true
    if (this.#lanes.size > 0) this.#options.tell({ type: 'drain' })
  }

  onReport(report: Extract<ExpressReport, { type: 'named' | 'up' | 'retired' | 'over' }>): void {
    const lane = this.#lanes.get(report.id)
    if (lane === undefined) return
    if (report.type === 'named') this.#onNamed(lane, report.certificate)
    else if (report.type === 'up') {
      lane.upMs = this.#now()
      lane.cameUp.resolve(true)
      if (lane.isDialer) this.#memory.succeeded(lane.podUid ?? '', lane.route)
      this.#tally(lane, 'up')
    } else if (report.type === 'retired') lane.isRetired = true
    else this.#onOver(lane, report.error)
  }

  #onOver(lane: Kept, why: string): void {
    const { id, route, podUid = '', upMs, isRetired } = lane
    this.#lanes.delete(id)
    lane.cameUp.resolve(false)
    lane.proven()
    if (upMs === undefined && !isRetired) this.#tally(lane, 'failed')
    if (lane.isDialer && upMs === undefined) this.#onFailed(podUid, route, why)
    // A peer that lets go of each lane as soon as it is made must not be dialled for every connection.
    else if (lane.isDialer && upMs !== undefined && !isRetired)
      this.#memory.ended(podUid, route, this.#now() - upMs, this.#now())
    this.#options.log.debug({ lane: id, route, why }, 'a lane is over')
  }

  /** The worker is gone, and all lanes with it. */
  onExit(): void {
    for (const { cameUp, proven } of this.#lanes.values()) {
      cameUp.resolve(false)
      proven()
    }
    this.#lanes.clear()
  }

  /** A better route serves the peer now, by a session as long as there is no lane: new streams do not go by the worse. */
  #leaveWorse(podUid: string, route: LaneRoute): void {
    const good = laneRoutes.indexOf(route)
    for (const lane of this.#lanes.values()) {
      if (!lane.isDialer || lane.isRetired || lane.podUid !== podUid) continue
      if (laneRoutes.indexOf(lane.route) <= good) continue
      lane.isRetired = true
      this.#options.tell({ type: 'leave', id: lane.id })
    }
  }

  #asGood(podUid: string, route: LaneRoute): Kept | undefined {
    const good = laneRoutes.indexOf(route)
    for (const lane of this.#lanes.values())
      if (
        lane.isDialer &&
        !lane.isRetired &&
        lane.podUid === podUid &&
        laneRoutes.indexOf(lane.route) <= good
      )
        return lane
    return undefined
  }

  #hand(
    fd: number | undefined,
    route: LaneRoute,
    client: NewLane['client'],
    proven: () => void = () => undefined,
  ): Kept | undefined {
    const copy = fd === undefined ? -1 : dup(fd)
    if (copy < 0) return undefined
    if (!this.#options.own(copy)) {
      close(copy)
      return undefined
    }
    const id = ++this.#lastId
    const cameUp = Promise.withResolvers<boolean>()
    const [podUid, isDialer] = [client?.podUid, client !== undefined]
    const lane: Kept = { id, route, podUid, isDialer, upMs: undefined, isRetired: false, cameUp, proven }
    this.#lanes.set(id, lane)
    this.#options.tell({ type: 'lane', lane: { id, fd: copy, route, ...(client && { client }) } })
    return lane
  }

  /** OpenSSL has verified the certificate; here it is seen whose it is. */
  #onNamed(lane: Kept, certificate: Uint8Array): void {
    const { trustDomain, tell, log } = this.#options
    lane.proven()
    try {
      const peer = identityOf(new X509Certificate(certificate), trustDomain)
      if (lane.isDialer && peer.podUid !== lane.podUid)
        throw new EdgeMeshError('identity-mismatch', `Cannot use a lane: pod ${peer.podUid} answers there.`)
      if (!lane.isDialer) {
        if (this.#count((l) => !l.isDialer && l.podUid === peer.podUid) >= maxInboundOfPeer)
          throw new EdgeMeshError('limit', `Cannot take a lane: pod ${peer.podUid} has enough of them.`)
        lane.podUid = peer.podUid
        lane.upMs = this.#now()
        this.#tally(lane, 'up')
      }
      tell({
        type: 'accept',
        id: lane.id,
        peer: lane.isDialer ? peer.podUid : `${spiffeIdOf(peer)} ${peer.podUid}`,
      })
    } catch (error) {
      log.warn({ error: sentenceOf(error) }, 'refused a lane')
      this.#tally(lane, codeOf(error))
      lane.isRetired = true
      tell({ type: 'refuse', id: lane.id })
    }
  }

  #count(isMeant: (lane: Kept) => boolean): number {
    let count = 0
    for (const lane of this.#lanes.values()) if (isMeant(lane)) count++
    return count
  }

  #tally({ isDialer }: Kept, outcome: string): void {
    this.#options.metrics.lanes.inc({ side: isDialer ? 'dialer' : 'acceptor', outcome })
  }

  #onFailed(podUid: string, route: LaneRoute, error: unknown): void {
    if (this.#memory.failures(podUid, route) === 0)
      this.#options.log.info(
        { peer: podUid, route, error: sentenceOf(error) },
        'no lane to this pod: it stays on its session',
      )
    this.#memory.failed(podUid, route, this.#now())
  }
}
