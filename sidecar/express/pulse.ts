import { patienceMs, roundTripAfter } from '../tunnel/patience.ts'

/** A peer from which nothing has come for so long is dead; pings go out more often. In ms. */
const silenceMs = 6_000
const pingEveryMs = 2_000
/** How long an OPEN may go without any sign of life, as `patienceMs` has it: a lane that is new answers in time. */
const openPatience = { leastMs: 1_000, mostMs: 5_000, roundTrips: 4, assumedMs: 0 }

/** When the peer of a lane was heard, and what is to be thought of its silence. Pure: it is told the time, in ms. */
export class Pulse {
  #heardMs: number
  #pingedMs: number
  #doubtedMs = Number.NEGATIVE_INFINITY
  #roundTripMs: number | undefined

  constructor(nowMs: number) {
    this.#heardMs = nowMs
    this.#pingedMs = nowMs
  }

  heard(nowMs: number): void {
    this.#heardMs = nowMs
  }

  pinged(nowMs: number): void {
    this.#pingedMs = nowMs
  }

  /** The last ping was answered. */
  answered(nowMs: number): void {
    this.#roundTripMs = roundTripAfter(this.#roundTripMs, nowMs - this.#pingedMs)
  }

  /** An OPEN was left without any sign of life for too long. */
  doubted(nowMs: number): void {
    this.#doubtedMs = nowMs
  }

  heardSince(ms: number): boolean {
    return this.#heardMs > ms
  }

  pingedSince(ms: number): boolean {
    return this.#pingedMs >= ms
  }

  /** Since it was doubted nothing has come. */
  get isDoubted(): boolean {
    return this.#doubtedMs > this.#heardMs
  }

  isDead(nowMs: number): boolean {
    return nowMs - this.#heardMs > silenceMs
  }

  wantsPing(nowMs: number): boolean {
    return nowMs - this.#pingedMs >= pingEveryMs
  }

  get patienceMs(): number {
    return patienceMs(this.#roundTripMs, openPatience)
  }
}
