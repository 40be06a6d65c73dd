import type { Logger } from '#shared/log.ts'
import type { SidecarMetrics } from './sidecar-metrics.ts'

export interface Opened {
  direction: 'inbound' | 'outbound'
  /** What was dialled: `ip:port` as the app or the peer asked for it. */
  destination: string
  /** Inbound: SPIFFE id and pod uid of the peer. */
  peer?: string
}

export interface Chosen {
  service?: string
  endpoint?: string
  podUid?: string
  route?: string
}

export interface Closed {
  sent?: number
  received?: number
  closeReason: string
  error?: string
}

/** One line and the metrics of each connection, written when it is over. */
export class AccessLog {
  readonly #log: Logger
  readonly #metrics: SidecarMetrics
  #open = 0
  /** Open connections that are carried without an entry. */
  #openElsewhere = () => 0

  constructor(log: Logger, metrics: SidecarMetrics) {
    this.#log = log
    this.#metrics = metrics
    metrics.gauge('connections_open', 'Connections open now.', () => this.openConnections)
  }

  get openConnections(): number {
    return this.#open + this.#openElsewhere()
  }

  countAlso(open: () => number): void {
    this.#openElsewhere = open
  }

  /** A connection that was carried elsewhere, once it is over; its metrics are `count`ed with others like it. */
  record(
    opened: Opened,
    chosen: Chosen & { route: string },
    { sent = 0, received = 0, ...closed }: Closed,
    { connectMs, durationMs }: { connectMs: number | undefined; durationMs: number },
  ): void {
    const bytes = { bytesSent: sent, bytesReceived: received, durationMs: round(durationMs) }
    const { closeReason, error } = closed
    const line = {
      ...opened,
      ...chosen,
      ...bytes,
      connectMs: connectMs && round(connectMs),
      closeReason,
      error,
    }
    this.#log.info(line, 'connection')
    if (connectMs !== undefined)
      this.#metrics.connectSeconds.observe({ route: chosen.route }, connectMs / 1_000)
  }

  count(
    direction: Opened['direction'],
    route: string,
    outcome: string,
    total: { connections: number; sent: number; received: number },
  ): void {
    this.#metrics.connections.inc({ direction, route, outcome }, total.connections)
    this.#metrics.bytes.inc({ direction, way: 'sent' }, total.sent)
    this.#metrics.bytes.inc({ direction, way: 'received' }, total.received)
  }

  open(opened: Opened): Entry {
    this.#open++
    return new Entry(opened, this.#metrics, (line) => {
      this.#open--
      this.#log.info(line, 'connection')
    })
  }
}

export class Entry {
  readonly #opened: Opened
  readonly #metrics: SidecarMetrics
  readonly #write: (line: object) => void
  readonly #startedMs = performance.now()
  #chosen: Chosen = {}
  #connectMs: number | undefined
  #closed = false

  constructor(opened: Opened, metrics: SidecarMetrics, write: (line: object) => void) {
    this.#opened = opened
    this.#metrics = metrics
    this.#write = write
  }

  /** What was decided for the connection; the last word wins when another endpoint was tried. */
  chose(chosen: Chosen): void {
    this.#chosen = { ...this.#chosen, ...chosen }
  }

  /** The upstream is connected. */
  connected(): void {
    this.#connectMs = performance.now() - this.#startedMs
    this.#metrics.connectSeconds.observe({ route: this.#route }, this.#connectMs / 1_000)
  }

  /** Idempotent. `sent` and `received` are the app's view, in bytes. */
  close({ sent = 0, received = 0, closeReason, error }: Closed): void {
    if (this.#closed) return
    this.#closed = true
    const { direction } = this.#opened
    this.#metrics.connections.inc({ direction, route: this.#route, outcome: closeReason })
    this.#metrics.bytes.inc({ direction, way: 'sent' }, sent)
    this.#metrics.bytes.inc({ direction, way: 'received' }, received)
    this.#write({
      ...this.#opened,
      ...this.#chosen,
      bytesSent: sent,
      bytesReceived: received,
      durationMs: round(performance.now() - this.#startedMs),
      ...(this.#connectMs === undefined ? {} : { connectMs: round(this.#connectMs) }),
      closeReason,
      ...(error === undefined ? {} : { error }),
    })
  }

  get #route(): string {
    return this.#chosen.route ?? (this.#opened.direction === 'inbound' ? 'inbound' : 'none')
  }
}

function round(ms: number): number {
  return Math.round(ms * 100) / 100
}
