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

  /** For connections that were carried elsewhere, once they are over, and are alike in all but their figures. */
  alike(opened: Opened, chosen: Chosen & { route: string }, closed: Closed): Alike {
    return new Alike(opened, chosen, closed, this.#log, this.#metrics)
  }

  open(opened: Opened): Entry {
    this.#open++
    return new Entry(opened, this.#metrics, (line) => {
      this.#open--
      this.#log.info(line, 'connection')
    })
  }
}

/** What many lines have in common is made text once: a line for itself costs more than all else that is left to be done. */
export class Alike {
  readonly #direction: Opened['direction']
  readonly #route: { route: string }
  readonly #closed: Closed
  readonly #log: Logger
  readonly #metrics: SidecarMetrics
  #connections = 0
  #sent = 0
  #received = 0

  constructor(
    opened: Opened,
    chosen: Chosen & { route: string },
    closed: Closed,
    log: Logger,
    metrics: SidecarMetrics,
  ) {
    this.#direction = opened.direction
    this.#route = { route: chosen.route }
    this.#closed = closed
    this.#log = log.child({ ...opened, ...chosen })
    this.#metrics = metrics
  }

  get connections(): number {
    return this.#connections
  }

  record(sent: number, received: number, durationMs: number, connectMs: number | undefined): void {
    this.#connections++
    this.#sent += sent
    this.#received += received
    const { closeReason, error } = this.#closed
    const line = {
      bytesSent: sent,
      bytesReceived: received,
      durationMs: round(durationMs),
      connectMs: connectMs && round(connectMs),
      closeReason,
      error,
    }
    this.#log.info(line, 'connection')
    if (connectMs !== undefined) this.#metrics.connectSeconds.observe(this.#route, connectMs / 1_000)
  }

  /** Counts them in the metrics; to be called once. */
  count(): void {
    const [direction, { route }, outcome] = [this.#direction, this.#route, this.#closed.closeReason]
    this.#metrics.connections.inc({ direction, route, outcome }, this.#connections)
    this.#metrics.bytes.inc({ direction, way: 'sent' }, this.#sent)
    this.#metrics.bytes.inc({ direction, way: 'received' }, this.#received)
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
