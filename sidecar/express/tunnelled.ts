import { Port } from '#shared/pump/lanes.ts'
import { close, closeWithReset } from '#shared/pump/libc.ts'
import { ANSWER, OPEN, RESET } from './frames.ts'
import type { Lane, LaneUser } from './lane.ts'
import { LaneStream } from './lane-stream.ts'
import { ABORTED, type About, CLOSED, GAVE_UP, type LaneRoute, type Target } from './messages.ts'
import type { CapturedEvents, Carried, Surroundings } from './surroundings.ts'
import type { Window } from './window.ts'

/** How long a far sidecar that is alive may take to answer an OPEN: its own connect deadline and a long round trip; in ms. */
const answerDeadlineMs = 7_000
/** An OPEN that is not answered for so long has the peer asked for a sign of life, in ms. */
const askAfterMs = 500

/** A captured connection that goes by a lane: nothing of it is read before the far sidecar has connected. */
export class TunnelledConnection implements LaneUser, Carried {
  readonly startedMs = performance.now()
  readonly patienceMs = askAfterMs
  place = -1
  seat = -1
  readonly flowKey: string
  readonly #around: Surroundings
  readonly #lane: Lane
  readonly #id: number
  readonly #app: Port
  readonly #target: LaneTarget
  readonly #window: Window
  readonly #on: CapturedEvents
  #stream: LaneStream | undefined
  #connectMs = 0
  #over = false

  constructor(
    around: Surroundings,
    { fd, flowKey, target, lane }: { fd: number; flowKey: string; target: LaneTarget; lane: Lane },
    on: CapturedEvents,
  ) {
    this.#around = around
    this.flowKey = flowKey
    this.#lane = lane
    this.#id = lane.nextStream()
    this.#app = new Port(fd)
    this.#target = target
    this.#window = around.windows.open()
    this.#on = on
  }

  get key(): string {
    return this.#target.key
  }

  get isConnecting(): boolean {
    return this.#stream === undefined && !this.#over
  }

  /** False when it cannot even begin; the connection is as it was then. */
  start(): boolean {
    const { loop, ledger } = this.#around
    if (!loop.watch(this, this.#app)) {
      loop.forget(this.#app.fd)
      this.#window.close()
      return false
    }
    ledger.countOpen(1)
    this.#lane.users.set(this.#id, this)
    this.#lane.control(OPEN, this.#id, this.#target.open(this.#window.size))
    return true
  }

  /** Until it is connected; then the stream gets the turns. */
  turn(): 'waiting' | 'finished' {
    if (this.#over || !this.#app.failed) return 'waiting'
    this.#lane.control(RESET, this.#id)
    this.#end(GAVE_UP)
    return 'finished'
  }

  onData(): void {
    this.#lane.fail('the peer sends before it answers')
  }

  onControl(type: number, payload: Buffer): void {
    if (type !== ANSWER) {
      this.#lane.fail('the peer breaks the protocol')
      return
    }
    if (payload[0] !== 0) {
      this.#punt(true)
      return
    }
    this.#connectMs = performance.now() - this.startedMs
    const { loop } = this.#around
    const [lane, id, app, window] = [this.#lane, this.#id, this.#app, this.#window]
    const stream = new LaneStream({ lane, id, app, window, credit: payload.readUInt32BE(1) }, (ending) =>
      this.#end(ending),
    )
    this.#stream = stream
    lane.users.set(id, stream)
    loop.hand(stream, app)
    loop.rest(this)
    loop.stir(stream)
  }

  onLaneOver(): void {
    if (this.isConnecting) this.#punt(false)
  }

  /**
   * A peer of which nothing is heard may be dead: there may be other endpoints, and the main thread knows them. A lane that has
   * been retired meanwhile may have much before this: there is, or will be, a better one.
   */
  late(): boolean {
    const { startedMs } = this
    const { pulse, isRetired } = this.#lane
    const nowMs = performance.now()
    this.#lane.ask(startedMs)
    const isAlive = pulse.heardSince(startedMs)
    if (!isRetired && nowMs - startedMs < (isAlive ? answerDeadlineMs : pulse.patienceMs)) return false
    if (!isAlive) pulse.doubted(nowMs)
    this.#lane.control(RESET, this.#id)
    this.#punt(!isRetired)
    return true
  }

  abort(): void {
    if (this.#stream !== undefined) this.#stream.abort(ABORTED)
    else {
      this.#lane.control(RESET, this.#id)
      this.#end(ABORTED)
    }
  }

  #punt(failed: boolean): void {
    if (this.#over) return
    const { loop, ledger } = this.#around
    const { fd } = this.#app
    this.#over = true
    this.#lane.users.delete(this.#id)
    this.#window.close()
    loop.rest(this)
    loop.unwatch(fd)
    ledger.countOpen(-1)
    this.#on.punt(this, fd, failed)
  }

  #end(ending: number): void {
    if (this.#over) return
    this.#over = true
    const { loop, ledger, records } = this.#around
    const { fd } = this.#app
    const stream = this.#stream
    if (stream === undefined) {
      this.#lane.users.delete(this.#id)
      this.#window.close()
    } else loop.rest(stream)
    loop.rest(this)
    loop.forget(fd)
    ledger.disown(fd)
    if (ending === CLOSED) close(fd)
    else closeWithReset(fd)
    ledger.countOpen(-1)
    const ms = performance.now() - this.startedMs
    const about = this.#target.aboutBy(this.#lane.route)
    records.add(about, ending, stream?.sent ?? 0, stream?.received ?? 0, this.#connectMs, ms)
    this.#on.end(this)
  }
}

/** A target that is reached by lanes, with what each connection to it needs. */
export class LaneTarget {
  readonly key: string
  readonly peer: string
  readonly #open: Buffer
  readonly #about: About
  readonly #abouts = new Map<LaneRoute, About>()

  /** `flowKey`: that of the endpoint's address and port. */
  constructor({ key, about }: Target, peer: string, flowKey: string) {
    this.key = key
    this.peer = peer
    this.#about = about
    this.#open = Buffer.concat([Buffer.alloc(4), Buffer.from(flowKey, 'latin1')])
  }

  /** The payload of an OPEN; valid until the next. */
  open(window: number): Buffer {
    this.#open.writeUInt32BE(window)
    return this.#open
  }

  /** The same for all connections, so that records can tell that they are alike. */
  aboutBy(route: LaneRoute): About {
    const known = this.#abouts.get(route) ?? { ...this.#about, route }
    this.#abouts.set(route, known)
    return known
  }
}
