import { Port } from '#shared/pump/lanes.ts'
import { accept, closeWithReset, EAGAIN, EMFILE, ENFILE, errno, originalAddress } from '#shared/pump/libc.ts'
import type { Task } from '#shared/pump/loop.ts'
import type { PumpWorker } from '#shared/pump/orders.ts'
import { flowKeyOf } from './address.ts'
import { Ledger } from './ledger.ts'
import type { ExpressData, ExpressOrder, ExpressReport, Flow, Listener, Punt, Target } from './messages.ts'
import { PlainConnection, type Surroundings } from './plain.ts'
import { Records } from './records.ts'

/** Of one listening socket in one turn. */
const maxAccepts = 32
/** Longer than a connect takes where nothing is wrong; the main thread has more time, and other endpoints. */
const connectDeadlineMs = 1_000
const tickMs = 250
/** How soon accepting is tried again when there was no descriptor left. */
const starvedMs = 100

interface InstalledFlow {
  targets: readonly Target[]
  next: number
}

class Listening implements Task {
  readonly fd: number
  readonly family: 4 | 6
  readonly port: Port
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
  readonly #connections = new Set<PlainConnection>()
  /** In the order in which they began. */
  readonly #connecting = new Set<PlainConnection>()
  readonly #address = Buffer.alloc(28)
  readonly #on = {
    punt: (connection: PlainConnection, fd: number) => {
      this.#forget(connection)
      this.#punts.push({ fd, failedFlow: connection.flowKey })
    },
    end: (connection: PlainConnection) => this.#forget(connection),
  }
  #listening: Listening[] = []
  #starvedUntilMs = 0
  #punts: Punt[] = []

  constructor(worker: PumpWorker, data: ExpressData, report: (report: ExpressReport) => void) {
    const { loop, pipes } = worker
    const { mode } = data
    const copies = () => (mode === 'random' ? Math.random() < 0.5 : mode !== 'always')
    const jointOptions = () => ({ copies: copies() })
    const [ledger, records] = [new Ledger(data.ledger), new Records(report)]
    this.#around = { loop, pipes, ledger, records, jointOptions }
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
      case 'flow':
        if (order.flow === undefined) this.#flows.delete(order.key)
        else this.#install(order.key, order.flow, order.after)
        return
      case 'abort':
        for (const connection of [...this.#connections]) connection.abort()
        this.#around.records.flush()
        this.#report({ type: 'idle' })
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
    const last = before === undefined ? after : before.targets[before.next]?.key
    const at =
      last === undefined
        ? 0
        : targets.findIndex(({ key }) => (before === undefined ? key > last : key >= last))
    this.#flows.set(key, { targets, next: Math.max(0, at) })
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
    const target = flow?.targets[flow.next]
    if (flow === undefined || target === undefined) {
      this.#punts.push({ fd })
      return
    }
    flow.next = (flow.next + 1) % flow.targets.length
    const connection = new PlainConnection(this.#around, { fd, flowKey, target }, this.#on)
    if (connection.start()) {
      this.#connections.add(connection)
      this.#connecting.add(connection)
    } else this.#punts.push({ fd, failedFlow: flowKey })
  }

  #forget(connection: PlainConnection): void {
    this.#connections.delete(connection)
    this.#connecting.delete(connection)
  }

  #beforeWaiting(nowMs: number): number {
    let waitMs = this.#checkConnects(nowMs)
    if (this.#punts.length > 0) {
      this.#report({ type: 'punts', punts: this.#punts })
      this.#punts = []
    }
    const recordsMs = this.#around.records.beforeWaiting(nowMs)
    if (recordsMs >= 0 && (waitMs < 0 || recordsMs < waitMs)) waitMs = recordsMs
    if (this.#starvedUntilMs === 0) return waitMs
    if (nowMs >= this.#starvedUntilMs) {
      this.#starvedUntilMs = 0
      for (const listening of this.#listening) this.#around.loop.stir(listening)
    }
    return waitMs < 0 ? starvedMs : Math.min(waitMs, starvedMs)
  }

  /** Those that are connected leave the front of the queue; the first that is not is the oldest. */
  #checkConnects(nowMs: number): number {
    for (const connection of this.#connecting) {
      if (connection.isConnecting) {
        if (nowMs - connection.startedMs < connectDeadlineMs) return tickMs
        connection.punt()
      }
      this.#connecting.delete(connection)
    }
    return -1
  }
}
