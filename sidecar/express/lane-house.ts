import { close } from '#shared/pump/libc.ts'
import type { PumpWorker } from '#shared/pump/orders.ts'
import { setDeadPeerTimeout } from '#shared/pump/tcp.ts'
import { TlsConnection } from '#shared/pump/tls-connection.ts'
import { Shares } from '../shares.ts'
import { socketAddressOf } from './address.ts'
import { Lane } from './lane.ts'
import { LaneGroups, maxStreams } from './lane-groups.ts'
import { type About, type ExpressReport, FORBIDDEN, LIMIT, type NewLane, STOPPING } from './messages.ts'
import { answerOpen, ServedConnection } from './served.ts'
import { Roster, type Surroundings } from './surroundings.ts'

const tickMs = 1_000
const deadPeerSeconds = 10
/** This thread has not run for so long: it cannot tell who was silent. */
const starvedMs = 3_000
const maxAbouts = 1_000
/** On all lanes of a peer together: each may have 16 KiB and more waiting here. */
const maxStreamsOfPeer = 2_000
/** How long what was sent may take to be read by peers when this pod ends, in ms. */
const lingerMs = 1_000
const lookMs = 20

/** All lanes of this pod: those that it has made, and those that peers have, with what they open. */
export class LaneHouse {
  readonly groups = new LaneGroups()
  readonly #worker: Pick<PumpWorker, 'loop' | 'context'>
  readonly #around: Surroundings
  readonly #report: (report: ExpressReport) => void
  readonly #maxConnections: number
  readonly #lanes = new Map<number, Lane>()
  readonly #dirty = new Set<Lane>()
  readonly #served = new Roster<ServedConnection>()
  readonly #abouts = new Map<string, About>()
  readonly #streams = new Shares(maxStreamsOfPeer)
  #self: ReadonlyMap<string, string> = new Map()
  #draining = false
  #tickedMs = 0
  #ending: { untilMs: number; onEnd: () => void } | undefined

  constructor(
    worker: Pick<PumpWorker, 'loop' | 'context'>,
    around: Surroundings,
    report: (report: ExpressReport) => void,
    maxConnections: number,
  ) {
    this.#worker = worker
    this.#around = around
    this.#report = report
    this.#maxConnections = maxConnections
  }

  /** What peers may reach, by flow key. */
  serve(self: ReadonlyMap<string, string>): void {
    this.#self = self
    this.#abouts.clear()
  }

  add({ id, fd, route, client }: NewLane): void {
    const { context, loop } = this.#worker
    const { ledger } = this.#around
    if (context === undefined) {
      ledger.disown(fd)
      close(fd)
      this.#report({ type: 'over', id, error: 'there is no certificate' })
      return
    }
    setDeadPeerTimeout(fd, deadPeerSeconds)
    const lane = new Lane({
      id,
      fd,
      tls: new TlsConnection(context, fd, client?.serverName),
      route,
      peer: client?.podUid ?? '',
      isDialer: client !== undefined,
      loop,
      ledger,
      dirty: this.#dirty,
      on: {
        named: (l) =>
          this.#report({ type: 'named', id: l.id, certificate: Uint8Array.from(l.certificate()) }),
        up: (l) => this.#onUp(l),
        open: (l, stream, payload) => this.#onOpen(l, stream, payload),
        retired: (l) => this.#onRetired(l),
        over: (l, error) => this.#onOver(l, error),
      },
    })
    this.#lanes.set(id, lane)
    if (!lane.start()) lane.fail('the kernel refuses')
  }

  accept(id: number, peer: string): void {
    this.#lanes.get(id)?.accept(peer)
  }

  refuse(id: number): void {
    this.#lanes.get(id)?.fail('its peer is another')
  }

  leave(id: number): void {
    this.#lanes.get(id)?.retire()
  }

  retire(isOver: (lane: Lane) => boolean): void {
    for (const lane of this.#lanes.values()) if (isOver(lane)) lane.retire()
  }

  /** Peers open no more streams. */
  drain(): void {
    this.#draining = true
    this.retire((lane) => !lane.isDialer)
  }

  /** Resets what is open, and calls back once peers have read what was sent to them. */
  abort(onEnd: () => void): void {
    this.#draining = true
    for (const connection of this.#served.all()) connection.abort()
    this.retire(() => true)
    this.#ending = { untilMs: performance.now() + lingerMs, onEnd }
  }

  /** Sends what lanes have gathered in this round. */
  flush(): void {
    for (const lane of this.#dirty) lane.flush()
  }

  beforeWaiting(nowMs: number): number {
    const waitMs = this.#served.check(nowMs)
    this.flush()
    if (this.#ending !== undefined) return this.#end(nowMs, this.#ending)
    if (this.#lanes.size === 0) return waitMs
    if (nowMs - this.#tickedMs >= tickMs) {
      const starved = this.#tickedMs > 0 && nowMs - this.#tickedMs > starvedMs
      this.#tickedMs = nowMs
      for (const lane of [...this.#lanes.values()]) lane.tick(nowMs, starved)
      this.flush()
    }
    return waitMs < 0 ? tickMs : waitMs
  }

  #end(nowMs: number, { untilMs, onEnd }: { untilMs: number; onEnd: () => void }): number {
    for (const lane of [...this.#lanes.values()])
      if (nowMs < untilMs) lane.end(nowMs)
      else lane.fail('the sidecar is stopping')
    if (this.#lanes.size > 0) return lookMs
    this.#ending = undefined
    onEnd()
    return -1
  }

  #onUp(lane: Lane): void {
    if (lane.isRetired) return
    this.groups.add(lane)
    this.#report({ type: 'up', id: lane.id })
  }

  #onRetired(lane: Lane): void {
    this.groups.delete(lane)
    this.#report({ type: 'retired', id: lane.id })
  }

  #onOver(lane: Lane, error: string): void {
    this.groups.delete(lane)
    this.#lanes.delete(lane.id)
    this.#report({ type: 'over', id: lane.id, error })
  }

  #onOpen(lane: Lane, id: number, payload: Buffer): void {
    const { ledger, records } = this.#around
    const { peer } = lane
    const key = payload.toString('latin1', 4)
    const destination = this.#self.get(key)
    const about = this.#aboutOf(peer, destination ?? 'what is not served here')
    const isFull = lane.users.size >= maxStreams || ledger.open + ledger.elsewhere >= this.#maxConnections
    const release = isFull ? undefined : this.#streams.take(peer)
    const refused = this.#draining ? STOPPING : destination === undefined ? FORBIDDEN : LIMIT
    if (this.#draining || destination === undefined || release === undefined) {
      release?.()
      answerOpen(lane, id, refused, 0)
      records.add(about, refused, 0, 0, 0, 0)
      lane.blame()
      return
    }
    const connection = new ServedConnection(
      this.#around,
      { lane, id, about, credit: payload.readUInt32BE() },
      (over) => {
        release()
        this.#served.delete(over)
      },
    )
    this.#served.add(connection)
    connection.start(socketAddressOf(key))
  }

  /** The same for all connections of a peer to one port, so that records can tell that they are alike. */
  #aboutOf(peer: string, destination: string): About {
    const name = `${peer} ${destination}`
    const known = this.#abouts.get(name) ?? { direction: 'inbound', destination, peer, route: 'inbound' }
    if (this.#abouts.size >= maxAbouts) this.#abouts.clear()
    this.#abouts.set(name, known)
    return known
  }
}
