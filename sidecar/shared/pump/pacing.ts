import { congestionControlOf, type Flight, flightOf, setCongestionControl } from './tcp.ts'

/** A path that has been faster than this is inside one site, or one node; in ms. */
const nearMs = 1
/** One that takes this long now is not, whatever it has been; a full buffer inside a site takes less. In ms. */
const farMs = 10
const lookEveryMs = 50
const paced = 'bbr'
/** The one that every kernel has, and allows to everybody. */
const unpaced = 'reno'

type Times = Pick<Flight, 'rttMs' | 'minRttMs'>

export function isFar({ rttMs }: Pick<Flight, 'rttMs'>): boolean {
  return rttMs >= farMs
}

/**
 * Whether a connection is paced in vain. BBR sends by a timer, at the rate that it has measured: that is for long paths, and
 * for those that lose packets. Inside a site it holds a sender to a third less than it could, at the same cpu, and is a
 * fiftieth of what a small request costs.
 */
export function isPacedInVain(times: Times, congestionControl: string): boolean {
  return congestionControl === paced && times.minRttMs < nearMs && !isFar(times)
}

/** A connection that was taken its pacing: it gets it back when its path changes, as that of a site with two links may. */
export class Unpaced {
  readonly #fd: number
  #lookedMs = performance.now()

  private constructor(fd: number) {
    this.#fd = fd
  }

  /**
   * It costs three calls, so there should be a reason: a full send buffer, or many requests. Undefined where nothing was
   * changed.
   */
  static of(fd: number): Unpaced | undefined {
    const flight = flightOf(fd)
    if (flight === undefined || !isPacedInVain(flight, congestionControlOf(fd))) return undefined
    setCongestionControl(fd, unpaced)
    return new Unpaced(fd)
  }

  /** To be called each time that its send buffer is full; false once it is paced again. */
  check(nowMs = performance.now()): boolean {
    if (nowMs - this.#lookedMs < lookEveryMs) return true
    this.#lookedMs = nowMs
    const flight = flightOf(this.#fd)
    if (flight === undefined || !isFar(flight)) return true
    setCongestionControl(this.#fd, paced)
    return false
  }
}

/** Connections that this socket accepts come from the same pod: no path is nearer. */
export function unpaceAccepted(listeningFd: number): void {
  if (isPacedInVain({ rttMs: 0, minRttMs: 0 }, congestionControlOf(listeningFd)))
    setCongestionControl(listeningFd, unpaced)
}
