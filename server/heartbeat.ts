/** One in so many turns may wait, rounded up. */
const mayWaitOneIn = 20

/** Thousands that are each asked for a sign of life at the same interval, but not all of them at the same moment. */
export class Heartbeat<T> {
  readonly #parts: readonly Set<T>[]
  #next = 0
  /** Turns of this round that have waited. */
  #waited = 0

  constructor(parts: number) {
    this.#parts = Array.from({ length: parts }, () => new Set<T>())
  }

  /** Takes a place in the smallest part. */
  add(one: T): void {
    this.#parts.reduce((least, part) => (part.size < least.size ? part : least)).add(one)
  }

  delete(one: T): void {
    for (const part of this.#parts) if (part.delete(one)) return
  }

  /**
   * The part whose turn it is: the same again after all others. Nobody when there is something better to do, but so that a
   * round takes about a twentieth longer at most, and two turns of one part are twice that further apart (of 50: 3 and 6 turns).
   */
  next(isBusy = false): Iterable<T> {
    if (isBusy && this.#waited < this.#parts.length / mayWaitOneIn) {
      this.#waited++
      return []
    }
    const part = this.#parts[this.#next] ?? []
    this.#next = (this.#next + 1) % this.#parts.length
    if (this.#next === 0) this.#waited = 0
    return part
  }
}
