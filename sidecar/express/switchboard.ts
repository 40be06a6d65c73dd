import { Port } from '#shared/pump/lanes.ts'
import { accept, closeWithReset, EAGAIN, EMFILE, ENFILE, errno, originalAddress } from '#shared/pump/libc.ts'
import { sooner, type Task } from '#shared/pump/loop.ts'
import type { PumpWorker } from '#shared/pump/orders.ts'
import { flowKeyOf } from './address.ts'
import { LaneHouse } from './lane-house.ts'
import { Ledger } from './ledger.ts'
import type { ExpressData, ExpressOrder, ExpressReport, Flow, Listener, Punt, Target } from './messages.ts'
import { PlainConnection } from './plain.ts'
import { Records } from './records.ts'
import { type CapturedEvents, type Carried, Roster, type Surroundings } from './surroundings.ts'
import { LaneTarget, TunnelledConnection } from './tunnelled.ts'
import { Windows } from './window.ts'

/** Of one listening socket in one turn. */
const maxAccepts = 32
/** How soon accepting is tried again when there was no descriptor left. */
const starvedMs = 100

interface Way {
  target: Target
  /** Where it is reached by lanes. */
  lanes: LaneTarget | undefined
}

interface InstalledFlow {
  ways: readonly Way[]
  next: number
}

class Listening implements Task {
  readonly fd: number
  readonly family: 4 | 6
  readonly port: Port
  place = -1
  readonly #take: (listening: Listening) => 'waiting' | 'more'

  constructor({ fd, family }: Listener, take: (listening: Listening) => 'waiting' | 'more') {
    this.fd = fd
    this.family = family
    this.port = new Port(fd)
    this.#take = take
  }

  turn(): 'waiting' | 'more' {
    return this.#take(this)
  }
}

/** The worker's side: accepts, carries what a flow is known for, and gives everything else to the main thread. */
export class Switchboard {
  readonly #around: Surroundings
  readonly #data: ExpressData
  readonly #report: (report: ExpressReport) => void
  readonly #flows = new Map<string, InstalledFlow>()
  readonly #house: LaneHouse
  readonly #connections = new Roster<Carried>()
  readonly #address = Buffer.alloc(28)
  readonly #on: CapturedEvents = {
    punt: (connection, fd, failed) => {
      this.#connections.delete(connection)
      const waitedMs = performance.now() - connection.startedMs
      const { flowKey, key } = connection
      this.#punts.push({ fd, waitedMs, ...(failed ? { failedFlow: flowKey } : { turn: key }) })
    },
    end: (connection) => this.#connections.delete(connection),
  }
  #listening: Listening[] = []
  #starvedUntilMs = 0
  #punts: Punt[] = []

  constructor(worker: PumpWorker, data: ExpressData, report: (report: ExpressReport) => void) {
    const { loop, pipes } = worker
    const { mode } = data
    const copies = () => (mode === 'random' ? Math.random() < 0.5 : mode !== 'always')
    const jointOptions = () => ({ copies: copies(), closes: true })
    const [ledger, records] = [new Ledger(data.ledger), new Records(report)]
    this.#around = { loop, pipes, ledger, records, windows: new Windows(), jointOptions }
    this.#house = new LaneHouse(worker, this.#around, report, data.maxConnections)
    this.#house.serve(data.served)
    this.#data = data
    this.#report = report
    loop.before((now) => this.#beforeWaiting(now))
  }

  obey(order: ExpressOrder): void {
    switch (order.type) {
      case 'listen':
        this.#listen(order.listeners)
        return
      case 'unlisten':
        for (const { fd } of this.#listening) this.#around.loop.unwatch(fd)
        this.#listening = []
        this.#report({ type: 'idle' })
        return
      case 'captured':
        this.#place(order.fd, order.family)
        return
      case 'flow':
        if (order.flow === undefined) this.#flows.delete(order.key)
        else this.#install(order.key, order.flow, order.after)
        return
      case 'lane':
        this.#house.add(order.lane)
        return
      case 'accept':
        this.#house.accept(order.id, order.peer)
        return
      case 'refuse':
        this.#house.refuse(order.id)
        return
      case 'retire':
        this.#house.retire((lane) => lane.route === order.route)
        return
      case 'leave':
        this.#house.leave(order.id)
        return
      case 'drain':
        this.#house.drain()
        return
      case 'self':
        this.#house.serve(order.served)
        return
      case 'abort':
        for (const connection of this.#connections.all()) connection.abort()
        this.#house.abort(() => {
          this.#around.records.flush()
          this.#report({ type: 'idle' })
        })
    }
  }

  #listen(listeners: readonly Listener[]): void {
    this.#listening = listeners.map((l) => new Listening(l, (listening) => this.#accept(listening)))
    for (const listening of this.#listening) {
      this.#around.loop.watch(listening, listening.port)
      this.#around.loop.stir(listening)
    }
  }

  /** A flow that replaces another goes on where that one was. */
  #install(key: string, { targets }: Flow, after: string | undefined): void {
    const before = this.#flows.get(key)
    const last = before === undefined ? after : before.ways[before.next]?.target.key
    const at =
      last === undefined
        ? 0
        : targets.findIndex(({ key }) => (before === undefined ? key > last : key >= last))
    const ways = targets.map((target) => ({ target, lanes: laneTargetOf(target) }))
    this.#flows.set(key, { ways, next: Math.max(0, at) })
  }

  #accept(listening: Listening): 'waiting' | 'more' {
    for (let i = 0; i < maxAccepts; i++) {
      const fd = this.#listening.includes(listening) ? accept(listening.fd) : -1
      if (fd >= 0) {
        this.#place(fd, listening.family)
        continue
      }
      const error = errno()
      const isStarved = error === EMFILE || error === ENFILE
      if (isStarved) this.#starvedUntilMs = performance.now() + starvedMs
      if (error === EAGAIN || isStarved || !this.#listening.includes(listening)) return 'waiting'
    }
    return 'more'
  }

  #place(fd: number, family: 4 | 6): void {
    const { ledger } = this.#around
    const { maxConnections, mode } = this.#data
    if (!ledger.own(fd) || ledger.open + ledger.elsewhere >= maxConnections) {
      ledger.disown(fd)
      closeWithReset(fd)
      return
    }
    const known = originalAddress(fd, family, this.#address) > 0
    const flowKey = known ? flowKeyOf(this.#address, family) : ''
    const flow = mode === 'random' && Math.random() < 0.5 ? undefined : this.#flows.get(flowKey)
    const way = flow?.ways[flow.next]
    if (flow === undefined || way === undefined) {
      this.#punts.push({ fd })
      return
    }
    const { target, lanes } = way
    const lane = lanes === undefined ? undefined : this.#house.groups.pick(lanes.peer)
    flow.next = (flow.next + 1) % flow.ways.length
    if (lanes !== undefined && lane === undefined) {
      this.#punts.push({ fd, turn: target.key })
      return
    }
    const connection =
      lanes === undefined || lane === undefined
        ? new PlainConnection(this.#around, { fd, flowKey, target }, this.#on)
        : new TunnelledConnection(this.#around, { fd, flowKey, target: lanes, lane }, this.#on)
    this.#connections.add(connection)
    if (connection.start()) return
    this.#connections.delete(connection)
    this.#punts.push({ fd, failedFlow: flowKey })
  }

  #beforeWaiting(nowMs: number): number {
    let waitMs = this.#connections.check(nowMs)
    waitMs = sooner(waitMs, this.#house.beforeWaiting(nowMs))
    if (this.#punts.length > 0) {
      this.#report({ type: 'punts', punts: this.#punts })
      this.#punts = []
    }
    waitMs = sooner(waitMs, this.#around.records.beforeWaiting(nowMs))
    if (this.#starvedUntilMs === 0) return waitMs
    if (nowMs >= this.#starvedUntilMs) {
      this.#starvedUntilMs = 0
      for (const listening of this.#listening) this.#around.loop.stir(listening)
    }
    return sooner(waitMs, starvedMs)
  }
}

function laneTargetOf(target: Target): LaneTarget | undefined {
  const { peer, address } = target
  if (peer === undefined) return undefined
  return new LaneTarget(target, peer, flowKeyOf(Buffer.from(address), address.length === 16 ? 4 : 6))
}
