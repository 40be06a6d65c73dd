import { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { descriptorOf } from '#shared/descriptor.ts'
import type { Logger } from '#shared/log.ts'
import { close, closeWithReset, dup } from '#shared/pump/libc.ts'
import type { FastPathMode } from '#shared/pump/mode.ts'
import type { Guest, Pump } from '#shared/pump/pump.ts'
import { resetStream } from '#shared/reset.ts'
import type { AccessLog } from '../access-log.ts'
import { type Interceptor, maxConnections } from '../interception/interceptor.ts'
import type { Routed } from '../routing/outbound.ts'
import type { Destination } from '../services/destination.ts'
import type { SidecarMetrics } from '../sidecar-metrics.ts'
import { authorityOf } from '../tunnel/connect.ts'
import { account } from './accounts.ts'
import { flowKeyOf, socketAddress } from './address.ts'
import { type FlowView, flowOf, servedBy } from './flows.ts'
import { LaneKeeper } from './lane-keeper.ts'
import { Ledger } from './ledger.ts'
import type { ExpressData, ExpressOrder, ExpressReport, Flow, Punt } from './messages.ts'
import { Pioneers } from './pioneers.ts'

/** Destinations known; the least recently used go first. */
const maxFlows = 1_000
/** A flow that failed is the main thread's for so long, in ms; longer each time. */
const minRestMs = 2_000
const maxRestMs = 60_000

export interface ExpressOptions {
  pump: Pump
  mode: FastPathMode
  view: FlowView
  declaredPorts: () => readonly number[]
  trustDomain: string
  accessLog: AccessLog
  /** A service's endpoints are still wanted. */
  used: (service: string) => void
  metrics: SidecarMetrics
  log: Logger
}

/** How a connection went. */
interface Learnt extends Pick<Routed, 'key' | 'route'> {
  bulk?: Pick<NonNullable<Routed['bulk']>, 'podUid' | 'dial'>
}

interface Known {
  key: string
  destination: Destination
  service: string | undefined
  /** Undefined where connections stay with the main thread. */
  flow: Flow | undefined
  /** The endpoint that had the last turn when the flow was made. */
  after: string | undefined
}

/**
 * The express path: once it runs, the pump's worker accepts what is captured, and carries by itself what needs no
 * decision any more. Everything else it gives to the main thread untouched, which is how each destination begins: after
 * its first connection the worker is told the flow, and told again of each change.
 */
export class Express implements Guest {
  readonly worker = new URL(
    import.meta.url.endsWith('.ts') ? './worker.ts' : './express-worker.js',
    import.meta.url,
  )
  readonly #options: ExpressOptions
  readonly #known = new Map<string, Known>()
  readonly #resting = new Map<string, { untilMs: number; forMs: number }>()
  readonly #waiting: (() => void)[] = []
  readonly #lanes: LaneKeeper
  readonly #pioneers = new Pioneers()
  #ledger = new Ledger()
  #interceptor: Interceptor | undefined
  #accepts = false
  #closed = false

  constructor(options: ExpressOptions) {
    this.#options = options
    const { pump, trustDomain, metrics, log } = options
    this.#lanes = new LaneKeeper({
      trustDomain,
      ready: async () => options.mode !== 'never' && !this.#closed && (await pump.ready()),
      own: (fd) => pump.isRunning && this.#ledger.own(fd),
      tell: (order) => this.#tell(order),
      metrics,
      log,
    })
    options.accessLog.countAlso(() => this.open)
    if (options.mode !== 'never') options.pump.host(this)
  }

  /** Connections that the worker carries. */
  get open(): number {
    return this.#ledger.open
  }

  /** Takes over accepting once there is something to accept: the worker costs memory. */
  attach(interceptor: Interceptor): void {
    this.#interceptor = interceptor
  }

  /** Lanes that are open. */
  get lanes(): number {
    return this.#lanes.size
  }

  /** A destination was connected to: the next connections to it may go by themselves. */
  learn(destination: Destination, routed: Learnt): void {
    if (this.#closed || this.#options.mode === 'never') return
    const name = authorityOf(destination.address, destination.port)
    const known = this.#known.get(name) ?? this.#add(name, destination, routed.key)
    void this.#prepare(known, routed).then((ready) => this.#pioneers.settle(name, ready))
  }

  /**
   * Gives a captured connection to the worker after all, when another one to the same destination is just being made:
   * of many that an app opens at once, only the first takes the long way. False when it stays with the main thread.
   */
  async follow(socket: Socket, destination: Destination): Promise<boolean> {
    if (this.#closed || this.#options.mode === 'never') return false
    const name = authorityOf(destination.address, destination.port)
    const known = this.#known.get(name)
    if (known !== undefined && known.flow === undefined) return false
    const pioneer = this.#pioneers.of(name)
    if (pioneer !== undefined) return (await pioneer) && this.#giveAway(socket)
    if (this.#pioneers.add(name)) void this.#options.pump.ready() // starts while the first is being connected
    return false
  }

  /** The catalogue has changed: all of it, or the endpoints of one service. */
  onChange(service: string | undefined): void {
    for (const [name, known] of this.#known) {
      if (service !== undefined && known.service !== service) continue
      const { flow, service: now } = flowOf(known.destination, this.#options.view)
      if (flow === undefined || known.flow === undefined || now !== known.service) this.#unlearn(name)
      else if (JSON.stringify(flow) !== JSON.stringify(known.flow)) {
        known.flow = flow
        this.#install(known)
      }
    }
  }

  /** A destination could not be connected to: nobody is to wait for that. */
  lost(destination: Destination): void {
    this.#pioneers.settle(authorityOf(destination.address, destination.port), false)
  }

  /** The ports that this pod declares have changed. */
  onSelf(): void {
    if (this.#options.pump.isRunning) this.#tell({ type: 'self', served: this.#served() })
  }

  /** Takes a peer's lane, from its preamble on; calls `proven` once the peer is known or the lane over. */
  takeLane(socket: Duplex, route: 'direct' | 'relayed', proven: () => void): void {
    void this.#lanes.take(socket, route, proven)
  }

  /** What goes by the relay is to find a new way; what is open may finish. */
  retireRelayed(): void {
    this.#lanes.retire('relayed')
  }

  /** Peers open no more streams on their lanes. */
  drain(): void {
    this.#lanes.drain()
  }

  /** Resolves once the worker accepts no more. */
  unlisten(): Promise<void> {
    return this.#ask({ type: 'unlisten' })
  }

  /** Resets what the worker has, and resolves once that is recorded. */
  async close(): Promise<void> {
    this.#closed = true
    await this.#ask({ type: 'abort' })
  }

  data(): ExpressData {
    this.#ledger = new Ledger()
    const { mode } = this.#options
    return { ledger: this.#ledger.memory, mode, maxConnections, served: this.#served() }
  }

  onReport(told: unknown): void {
    const report = told as ExpressReport
    if (report.type === 'punts') for (const punt of report.punts) this.#onPunt(punt)
    else if (report.type === 'closed') this.#onClosed(report)
    else if (report.type === 'idle') this.#waiting.shift()?.()
    else this.#lanes.onReport(report)
  }

  onExit(): void {
    const left = this.#ledger.owned()
    for (const fd of left) closeWithReset(fd)
    if (this.open > 0) this.#options.log.error({ connections: this.open }, 'connections died with the pump')
    this.#ledger = new Ledger()
    this.#accepts = false
    this.#lanes.onExit()
    for (const resolve of this.#waiting.splice(0)) resolve()
    if (!this.#closed) void this.#interceptor?.takeBack()
  }

  /** Makes sure of what the worker needs for the destination; whether it can carry connections there. */
  async #prepare(known: Known | undefined, { route, bulk }: Learnt): Promise<boolean> {
    const lane =
      bulk === undefined || route === 'local' || route === 'plain'
        ? true
        : this.#lanes.ensure(bulk.podUid, route, bulk.dial)
    if (known?.flow === undefined) return false
    if (!this.#accepts) await this.#begin()
    return (await lane) && this.#accepts
  }

  #giveAway(socket: Socket): boolean {
    const fd = socket.destroyed ? undefined : descriptorOf(socket)
    const copy = fd === undefined ? -1 : dup(fd)
    if (copy < 0) return false
    if (!this.#ledger.own(copy)) {
      close(copy)
      return false
    }
    this.#tell({ type: 'captured', fd: copy, family: socket.remoteFamily === 'IPv6' ? 6 : 4 })
    socket.destroy() // the worker has a duplicate
    return true
  }

  /** Hands accepting over to the worker, with all that is known. */
  async #begin(): Promise<void> {
    if (!this.#options.pump.available || !(await this.#options.pump.ready())) return
    const listeners = this.#closed || this.#accepts ? [] : (this.#interceptor?.handOver() ?? [])
    if (listeners.length === 0) return
    this.#accepts = true
    for (const known of this.#known.values()) this.#install(known)
    this.#tell({ type: 'listen', listeners })
  }

  #add(name: string, destination: Destination, after: string | undefined): Known | undefined {
    const address = socketAddress(destination)
    const key = address === undefined ? undefined : flowKeyOf(address, address.length === 16 ? 4 : 6)
    if (key === undefined || (this.#resting.get(key)?.untilMs ?? 0) > performance.now()) return undefined
    const { service, flow } = flowOf(destination, this.#options.view)
    const known = { key, destination, service, flow, after }
    this.#known.set(name, known)
    this.#install(known)
    const [oldest] = this.#known.keys()
    if (this.#known.size > maxFlows && oldest !== undefined) this.#unlearn(oldest)
    return known
  }

  #install({ key, flow, after }: Known): void {
    if (flow !== undefined && this.#accepts)
      this.#tell({ type: 'flow', key, flow, ...(after === undefined ? {} : { after }) })
  }

  #served(): ReadonlyMap<string, string> {
    return servedBy(this.#options.view.self.podIPs, this.#options.declaredPorts())
  }

  #ask(order: ExpressOrder): Promise<void> {
    if (this.#options.mode === 'never' || !this.#options.pump.isRunning) return Promise.resolve()
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#waiting.push(resolve)
    this.#tell(order)
    return promise
  }

  #tell(order: ExpressOrder): void {
    this.#options.pump.tell(order)
  }

  #unlearn(name: string): void {
    const known = this.#known.get(name)
    this.#known.delete(name)
    if (known?.flow !== undefined && this.#accepts)
      this.#tell({ type: 'flow', key: known.key, flow: undefined })
  }

  #onPunt({ fd, failedFlow, ...detour }: Punt): void {
    const ledger = this.#ledger
    ledger.disown(fd)
    this.#options.metrics.express.inc({ outcome: 'given' })
    if (failedFlow !== undefined) this.#rest(failedFlow)
    const socket = this.#wrap(fd)
    if (socket === undefined) return
    ledger.countElsewhere(1)
    socket.once('close', () => ledger.countElsewhere(-1))
    if (this.#closed) resetStream(socket)
    else this.#interceptor?.accept(socket, detour)
  }

  #wrap(fd: number): Socket | undefined {
    try {
      const options = { fd, allowHalfOpen: true, pauseOnCreate: true, readable: true, writable: true }
      return new Socket(options)
    } catch (error) {
      this.#options.log.warn({ error }, 'a captured connection could not be taken')
      close(fd)
      return undefined
    }
  }

  /** An endpoint of the flow does not answer: until that is over, the main thread tries one after another. */
  #rest(key: string): void {
    for (const [name, known] of this.#known) if (known.key === key) this.#unlearn(name)
    const forMs = Math.min(maxRestMs, (this.#resting.get(key)?.forMs ?? minRestMs / 2) * 2)
    if (this.#resting.size >= maxFlows) this.#resting.clear()
    this.#resting.set(key, { untilMs: performance.now() + forMs, forMs })
  }

  #onClosed(report: Extract<ExpressReport, { type: 'closed' }>): void {
    const { accessLog, metrics } = this.#options
    account(report, accessLog, metrics)
    for (const { direction, destination } of report.abouts)
      if (direction === 'outbound') this.#touch(destination)
  }

  #touch(name: string): void {
    const known = this.#known.get(name)
    if (known === undefined) return
    this.#known.delete(name)
    this.#known.set(name, known)
    if (known.service !== undefined) this.#options.used(known.service)
  }
}
