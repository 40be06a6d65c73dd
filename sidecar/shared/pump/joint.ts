import { type PipePool, type Port, SpliceLane, type Turn } from './lanes.ts'

export type Side = 'a' | 'b'

export interface JointOptions {
  aEnded?: boolean
  bEnded?: boolean
  /** Starts by copying, as for small talk; bulk is spliced once it is seen. */
  copies?: boolean
  /** Both sockets are closed as soon as it is finished. */
  closes?: boolean
}

/** Two sockets that are joined, each direction by itself. */
export class Joint {
  readonly #a: Port
  readonly #b: Port
  readonly #up: SpliceLane
  readonly #down: SpliceLane
  readonly #closes: boolean
  #upTurn: Turn = 'more'
  #downTurn: Turn = 'more'
  broke: Side | undefined

  constructor(a: Port, b: Port, pipes: PipePool, options: JointOptions = {}) {
    const { aEnded = false, bEnded = false, copies = false, closes = false } = options
    this.#closes = closes
    this.#a = a
    this.#b = b
    this.#up = new SpliceLane(a, b, pipes, aEnded, copies)
    this.#down = new SpliceLane(b, a, pipes, bEnded, copies)
  }

  get aToB(): number {
    return this.#up.bytes
  }

  get bToA(): number {
    return this.#down.bytes
  }

  turn(): 'waiting' | 'more' | 'finished' {
    if (this.#upTurn !== 'done') {
      this.#upTurn = this.#up.turn(this.#closes && this.#downTurn === 'done')
      if (this.#upTurn === 'source-broke') this.broke = 'a'
      if (this.#upTurn === 'target-broke') this.broke = 'b'
    }
    if (this.#downTurn !== 'done') {
      this.#downTurn = this.#down.turn(this.#closes && this.#upTurn === 'done')
      if (this.#downTurn === 'source-broke') this.broke = 'b'
      if (this.#downTurn === 'target-broke') this.broke = 'a'
    }
    // With its reading direction over, only epoll tells that a side broke.
    if (this.#a.failed && this.#upTurn === 'done') this.broke ??= 'a'
    if (this.#b.failed && this.#downTurn === 'done') this.broke ??= 'b'
    if (this.broke !== undefined || (this.#upTurn === 'done' && this.#downTurn === 'done')) return 'finished'
    return this.#upTurn === 'more' || this.#downTurn === 'more' ? 'more' : 'waiting'
  }

  /** Gives back what it borrowed. */
  close(): void {
    this.#up.close()
    this.#down.close()
  }
}
