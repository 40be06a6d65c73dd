import { type About, type ExpressReport, figuresEach } from './messages.ts'

/** Reported together when so many are over, or after so many ms. */
const maxBatch = 256
const maxWaitMs = 50

/** Gathers what became of connections: a message for each would cost more than the connection. */
export class Records {
  readonly #report: (report: ExpressReport) => void
  readonly #abouts = new Map<About, number>()
  readonly #figures = new Float64Array(maxBatch * figuresEach)
  #count = 0
  #firstMs = 0

  constructor(report: (report: ExpressReport) => void) {
    this.#report = report
  }

  add(about: About, ending: number, sent: number, received: number, connectMs: number, ms: number): void {
    let index = this.#abouts.get(about)
    if (index === undefined) {
      index = this.#abouts.size
      this.#abouts.set(about, index)
    }
    if (this.#count === 0) this.#firstMs = performance.now()
    const [at, figures] = [this.#count * figuresEach, this.#figures]
    figures[at] = index
    figures[at + 1] = ending
    figures[at + 2] = sent
    figures[at + 3] = received
    figures[at + 4] = connectMs
    figures[at + 5] = ms
    if (++this.#count === maxBatch) this.flush()
  }

  /** How long the loop may wait before it asks again, in ms, or -1. */
  beforeWaiting(nowMs: number): number {
    if (this.#count === 0) return -1
    const leftMs = this.#firstMs + maxWaitMs - nowMs
    if (leftMs > 0) return Math.ceil(leftMs)
    this.flush()
    return -1
  }

  flush(): void {
    if (this.#count === 0) return
    const figures = this.#figures.slice(0, this.#count * figuresEach)
    this.#report({ type: 'closed', abouts: [...this.#abouts.keys()], figures })
    this.#abouts.clear()
    this.#count = 0
  }
}
