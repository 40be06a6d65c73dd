import { Joint } from '#shared/pump/joint.ts'
import { Port } from '#shared/pump/lanes.ts'
import { acknowledge, close, closeWithReset, connectTo, ECONNRESET, socketError } from '#shared/pump/libc.ts'
import { ABORTED, CLOSED, GAVE_UP, RESET_BY_APP, RESET_BY_PEER, type Target } from './messages.ts'
import type { CapturedEvents, Carried, Surroundings } from './surroundings.ts'

/** Longer than a connect takes where nothing is wrong; the main thread has more time, and other endpoints. */
const connectDeadlineMs = 1_000

/** A captured connection and the one to its endpoint, from accept to close, in the worker alone. */
export class PlainConnection implements Carried {
  readonly startedMs = performance.now()
  readonly patienceMs = connectDeadlineMs
  place = -1
  seat = -1
  readonly flowKey: string
  readonly #around: Surroundings
  readonly #target: Target
  readonly #app: Port
  readonly #on: CapturedEvents
  #upstream: Port | undefined
  #joint: Joint | undefined
  #connectMs = 0
  #isMade = false
  #isAnswered = false

  constructor(
    around: Surroundings,
    { fd, flowKey, target }: { fd: number; flowKey: string; target: Target },
    on: CapturedEvents,
  ) {
    this.#around = around
    this.#app = new Port(fd)
    this.flowKey = flowKey
    this.#target = target
    this.#on = on
  }

  get key(): string {
    return this.#target.key
  }

  get isConnecting(): boolean {
    return this.#joint === undefined
  }

  /** False when it cannot even begin; the connection is as it was then. */
  start(): boolean {
    const { loop, ledger } = this.#around
    const fd = connectTo(this.#target.address, true)
    if (fd < 0) return false
    if (!ledger.own(fd)) {
      close(fd)
      return false
    }
    const upstream = new Port(fd, { mayUnpace: true })
    upstream.readable = false
    upstream.writable = false
    this.#upstream = upstream
    ledger.countOpen(1)
    if (loop.watch(this, this.#app) && loop.watch(this, upstream)) return true
    this.#giveBack()
    return false
  }

  turn(): 'waiting' | 'more' | 'finished' {
    if (this.#joint === undefined && !this.#connect()) return 'waiting'
    const joint = this.#joint
    if (joint === undefined) return 'finished'
    const turn = joint.turn()
    this.#acknowledge(joint)
    if (turn === 'finished')
      this.#end(joint.broke === undefined ? CLOSED : joint.broke === 'a' ? RESET_BY_APP : RESET_BY_PEER)
    return turn
  }

  /**
   * A connection that was made lazily has not told the endpoint yet that it is, where the app has said nothing to go with that.
   * And it goes on to keep acknowledgements back: an endpoint that sends a head and then a body would wait 40 ms between them,
   * once. Where an answer came with its end there is nothing to wait for.
   */
  #acknowledge({ aToB, bToA }: Joint): void {
    const upstream = this.#upstream
    if (this.#isAnswered || upstream === undefined) return
    const isDue = bToA > 0 ? !upstream.hungUp : !this.#isMade && aToB === 0
    this.#isMade = true
    this.#isAnswered = bToA > 0
    if (isDue) acknowledge(upstream.fd)
  }

  /** It has taken too long to connect: the main thread tries again, and elsewhere. */
  late(): boolean {
    const { fd } = this.#app
    this.#giveBack()
    this.#around.loop.rest(this)
    this.#on.punt(this, fd, true)
    return true
  }

  abort(): void {
    this.#around.loop.rest(this)
    this.#end(ABORTED)
  }

  /** False while there is nothing to do but to wait. */
  #connect(): boolean {
    const upstream = this.#upstream
    if (upstream === undefined) return true
    if (this.#app.failed) {
      this.#end(GAVE_UP)
      return true
    }
    if (!upstream.writable) return false
    // An endpoint that accepts and resets has been connected: it must not be connected to once more.
    if (upstream.failed && socketError(upstream.fd) !== ECONNRESET) {
      this.late()
      return true
    }
    this.#connectMs = performance.now() - this.startedMs
    if (upstream.failed) {
      this.#end(RESET_BY_PEER)
      return true
    }
    this.#joint = new Joint(this.#app, upstream, this.#around.pipes, this.#around.jointOptions())
    return true
  }

  /** The app's socket is nobody's now, and the endpoint's is closed. */
  #giveBack(): void {
    const { loop, ledger } = this.#around
    loop.unwatch(this.#app.fd)
    if (this.#upstream !== undefined) {
      loop.forget(this.#upstream.fd)
      ledger.disown(this.#upstream.fd)
      close(this.#upstream.fd)
    }
    this.#upstream = undefined
    ledger.countOpen(-1)
  }

  #end(ending: number): void {
    const { loop, ledger, records } = this.#around
    const joint = this.#joint
    joint?.close()
    for (const port of [this.#app, this.#upstream]) {
      if (port === undefined) continue
      loop.forget(port.fd)
      ledger.disown(port.fd)
      if (ending === CLOSED) close(port.fd)
      else closeWithReset(port.fd)
    }
    this.#joint = undefined
    this.#upstream = undefined
    ledger.countOpen(-1)
    const [sent, received] = [joint?.aToB ?? 0, joint?.bToA ?? 0]
    const ms = performance.now() - this.startedMs
    records.add(this.#target.about, ending, sent, received, this.#connectMs, ms)
    this.#on.end(this)
  }
}
