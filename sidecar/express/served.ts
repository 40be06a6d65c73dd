import { Port } from '#shared/pump/lanes.ts'
import {
  close,
  closeWithReset,
  connectTo,
  ECONNREFUSED,
  ECONNRESET,
  ETIMEDOUT,
  errno,
  socketError,
} from '#shared/pump/libc.ts'
import { ANSWER, RESET } from './frames.ts'
import type { Lane, LaneUser } from './lane.ts'
import { LaneStream } from './lane-stream.ts'
import {
  ABORTED,
  type About,
  CLOSED,
  REFUSED,
  RESET_BY_APP,
  RESET_BY_PEER,
  STOPPING,
  TIMEOUT,
  UNREACHABLE,
} from './messages.ts'
import type { Carried, Surroundings } from './surroundings.ts'
import type { Window } from './window.ts'

const connectDeadlineMs = 5_000
const answer = Buffer.alloc(5)

/** Says why a stream is not opened, or (0) that it is, and how much may be sent on it. */
export function answerOpen(lane: Lane, id: number, ending: number, window: number): void {
  answer[0] = ending
  answer.writeUInt32BE(window, 1)
  lane.control(ANSWER, id, answer)
}

/** A stream that a peer has opened, and the connection to this pod's app. */
export class ServedConnection implements LaneUser, Carried {
  readonly startedMs = performance.now()
  readonly patienceMs = connectDeadlineMs
  place = -1
  seat = -1
  readonly #around: Surroundings
  readonly #lane: Lane
  readonly #id: number
  readonly #about: About
  readonly #credit: number
  readonly #window: Window
  readonly #onEnd: (connection: ServedConnection) => void
  #app: Port | undefined
  #stream: LaneStream | undefined
  #connectMs = 0
  #over = false

  constructor(
    around: Surroundings,
    { lane, id, about, credit }: { lane: Lane; id: number; about: About; credit: number },
    onEnd: (connection: ServedConnection) => void,
  ) {
    this.#around = around
    this.#lane = lane
    this.#id = id
    this.#about = about
    this.#credit = credit
    this.#window = around.windows.open()
    this.#onEnd = onEnd
  }

  get isConnecting(): boolean {
    return this.#stream === undefined && !this.#over
  }

  /** Dials the app; what goes wrong is answered. */
  start(address: Uint8Array): void {
    const { loop, ledger } = this.#around
    ledger.countOpen(1)
    this.#lane.users.set(this.#id, this)
    const fd = connectTo(address)
    if (fd < 0 || !ledger.own(fd)) {
      const error = fd < 0 ? errno() : 0
      if (fd >= 0) close(fd)
      this.#refuse(endingOf(error))
      return
    }
    const app = new Port(fd, { mayUnpace: true })
    app.readable = false
    app.writable = false
    this.#app = app
    if (!loop.watch(this, app)) this.#refuse(UNREACHABLE)
  }

  /** Until it is connected; then the stream gets the turns. */
  turn(): 'waiting' | 'finished' {
    const app = this.#app
    if (this.#over || app === undefined) return 'finished'
    if (!app.writable) return 'waiting'
    if (app.failed) {
      const error = socketError(app.fd)
      if (error !== ECONNRESET) {
        this.#refuse(endingOf(error))
        return 'finished'
      }
    }
    this.#connectMs = performance.now() - this.startedMs
    const { loop } = this.#around
    const [lane, id, window, credit] = [this.#lane, this.#id, this.#window, this.#credit]
    answerOpen(lane, id, 0, window.size)
    if (this.#over) return 'finished' // the lane has failed
    const stream = new LaneStream({ lane, id, app, window, credit }, (ending) => this.#end(ending))
    this.#stream = stream
    lane.users.set(id, stream)
    loop.hand(stream, app)
    // An app that accepts and resets has been connected to.
    if (app.failed) stream.abort(RESET_BY_APP)
    else loop.stir(stream)
    return 'finished'
  }

  onData(): void {
    this.#lane.fail('the peer sends before it is answered')
  }

  onControl(type: number): void {
    if (type !== RESET) {
      this.#lane.fail('the peer breaks the protocol')
      return
    }
    this.#end(RESET_BY_PEER)
    this.#lane.blame()
  }

  onLaneOver(): void {
    this.#end(RESET_BY_PEER)
  }

  late(): boolean {
    this.#refuse(TIMEOUT)
    return true
  }

  abort(): void {
    if (this.#stream !== undefined) this.#stream.abort(ABORTED)
    else {
      answerOpen(this.#lane, this.#id, STOPPING, 0)
      this.#end(ABORTED)
    }
  }

  #refuse(ending: number): void {
    answerOpen(this.#lane, this.#id, ending, 0)
    this.#end(ending)
  }

  #end(ending: number): void {
    if (this.#over) return
    this.#over = true
    const { loop, ledger, records } = this.#around
    const [app, stream] = [this.#app, this.#stream]
    if (stream === undefined) {
      this.#lane.users.delete(this.#id)
      this.#window.close()
    } else loop.rest(stream)
    loop.rest(this)
    if (app !== undefined) {
      loop.forget(app.fd)
      ledger.disown(app.fd)
      if (ending === CLOSED) close(app.fd)
      else closeWithReset(app.fd)
    }
    ledger.countOpen(-1)
    const ms = performance.now() - this.startedMs
    records.add(this.#about, ending, stream?.sent ?? 0, stream?.received ?? 0, this.#connectMs, ms)
    this.#onEnd(this)
  }
}

function endingOf(error: number): number {
  return error === ECONNREFUSED ? REFUSED : error === ETIMEDOUT ? TIMEOUT : UNREACHABLE
}
