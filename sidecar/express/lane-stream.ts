import type { Port } from '#shared/pump/lanes.ts'
import { EAGAIN, EINTR, errno, recv, recvFlags, send, sendFlags } from '#shared/pump/libc.ts'
import { ByteQueue } from './byte-queue.ts'
import { CREDIT, FIN, RESET } from './frames.ts'
import type { Lane, LaneUser } from './lane.ts'
import { CLOSED, RESET_BY_APP, RESET_BY_PEER } from './messages.ts'
import type { Window } from './window.ts'

/** A peer that grants more than this is not counting. */
const maxCredit = 2 ** 31
/** In one turn, so that all streams get theirs. */
const turnBytes = 128 * 1024
const creditBytes = Buffer.alloc(4)

/** An app's socket and its stream of a lane, once both are connected. The two ends are alike. */
export class LaneStream implements LaneUser {
  /** Bytes that the app has sent, and received. */
  sent = 0
  received = 0
  place = -1
  readonly #lane: Lane
  readonly #id: number
  readonly #app: Port
  readonly #window: Window
  readonly #onEnd: (ending: number) => void
  readonly #queue = new ByteQueue()
  /** How much may be sent. */
  #credit: number
  /** The peer's direction is over; and that was passed on to the app. */
  #inEnded = false
  #inDone = false
  #outDone = false
  #over = false

  constructor(
    { lane, id, app, window, credit }: { lane: Lane; id: number; app: Port; window: Window; credit: number },
    onEnd: (ending: number) => void,
  ) {
    this.#lane = lane
    this.#id = id
    this.#app = app
    this.#window = window
    this.#credit = credit
    this.#onEnd = onEnd
  }

  turn(): 'waiting' | 'more' | 'finished' {
    if (!this.#over) this.#deliver()
    const more = !this.#over && !this.#outDone && this.#collect()
    // What the app does not take, or may not send for now, does not tell that it is gone.
    if (!this.#over && this.#app.failed && (this.#outDone || this.#credit === 0)) this.#break()
    if (this.#over) return 'finished'
    if (this.#inDone && this.#outDone) this.#end(CLOSED)
    return more ? 'more' : 'waiting'
  }

  onData(bytes: Buffer): void {
    if (this.#inEnded || !this.#window.came(bytes.length)) {
      this.#lane.fail('the peer sends more than it may')
      return
    }
    let at = 0
    if (this.#queue.length === 0 && this.#app.writable) {
      at = Math.max(0, send(this.#app.fd, bytes, bytes.length, sendFlags)) // a failure is met again below
      if (at > 0) this.#taken(at, at < bytes.length)
    }
    if (this.#over || at === bytes.length) return
    this.#queue.push(at === 0 ? bytes : bytes.subarray(at))
    this.#deliver()
  }

  onControl(type: number, payload: Buffer): void {
    if (type === RESET) this.#end(RESET_BY_PEER)
    else if (type === FIN && !this.#inEnded) {
      this.#inEnded = true
      this.#deliver()
      if (!this.#over && this.#inDone && this.#outDone) this.#end(CLOSED)
    } else if (type === CREDIT) {
      this.#credit += payload.readUInt32BE()
      if (this.#credit > maxCredit) this.#lane.fail('the peer breaks the protocol')
      else if (!this.#outDone) this.#lane.stir(this)
    } else this.#lane.fail('the peer breaks the protocol')
  }

  /** Where both directions have ended the lane is not needed any more: what has come is still the app's. */
  onLaneOver(): void {
    if (!this.#inEnded || !this.#outDone) this.#end(RESET_BY_PEER)
  }

  /** Ends it with a reset on both sides. */
  abort(ending: number): void {
    if (this.#over) return
    this.#lane.control(RESET, this.#id)
    this.#end(ending)
  }

  /** Passes on to the app what came. */
  #deliver(): void {
    while (this.#queue.length > 0) {
      if (this.#over || !this.#app.writable) return
      const head = this.#queue.head()
      const count = send(this.#app.fd, head, head.length, sendFlags)
      if (count > 0) {
        this.#queue.drop(count)
        this.#taken(count, this.#queue.length > 0)
      } else if (errno() === EAGAIN) this.#app.full()
      else if (errno() !== EINTR) {
        this.#break()
        return
      }
    }
    if (this.#over || !this.#inEnded || this.#inDone) return
    if (!this.#outDone) this.#app.end() // else it is closed at once
    this.#inDone = true
  }

  #taken(bytes: number, someWait: boolean): void {
    this.received += bytes
    const credit = this.#window.taken(bytes, someWait)
    if (credit === 0 || this.#inEnded) return
    creditBytes.writeUInt32BE(credit)
    this.#lane.control(CREDIT, this.#id, creditBytes)
  }

  /** Takes what the app sends; whether there is more. */
  #collect(): boolean {
    const app = this.#app
    for (let taken = 0; taken < turnBytes; ) {
      if (!app.readable || this.#credit <= 0) return false
      const room = this.#lane.reserve(this, this.#credit)
      if (room === undefined) return false // it is stirred when the lane takes bytes again
      const count = recv(app.fd, room, room.length, recvFlags)
      if (count > 0) {
        this.#lane.commit(this.#id, count)
        this.#credit -= count
        this.sent += count
        taken += count
        if (count < room.length && !app.hungUp) app.readable = false
        continue
      }
      const missed = app.missed(count)
      if (missed === 'ended') {
        this.#lane.control(FIN, this.#id)
        this.#outDone = true
        return false
      }
      if (missed === 'broke') {
        this.#break()
        return false
      }
    }
    return true
  }

  #break(): void {
    this.abort(RESET_BY_APP)
  }

  #end(ending: number): void {
    if (this.#over) return
    this.#over = true
    this.#window.close()
    this.#queue.clear()
    this.#lane.users.delete(this.#id)
    this.#onEnd(ending)
  }
}
