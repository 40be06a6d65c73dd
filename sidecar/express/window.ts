/** What a stream begins with, in bytes; where much is granted already, the lesser. */
const initialWindow = 64 * 1024
const scarceWindow = 16 * 1024
/** One stream may have 6 MiB on its way, with what waits for credit: some 400 Mbit/s at 100 ms. */
const maxWindow = 6 * 1024 * 1024
/** Of all streams of the process: what their apps do not take may come to lie in our memory. */
const budgetBytes = 10 * 1024 * 1024
/** One stream may add this part of what is left: a few that were fast once must not have it all. */
const growthShare = 1 / 2
/** Credit is given for so much of a window at once: what waits for it is not on its way. */
const creditShare = 1 / 4

/** An app that takes a windowful in so short a time needs more on its way, even if it is late now and then; in ms. */
const fastMs = 50

/** How much all streams may be sent, together. */
export class Windows {
  readonly now: () => number
  #granted = 0

  /** `now` in ms, monotonic. */
  constructor(now: () => number = () => performance.now()) {
    this.now = now
  }

  get granted(): number {
    return this.#granted
  }

  open(): Window {
    const size = this.#granted + initialWindow <= budgetBytes ? initialWindow : scarceWindow
    this.#granted += size
    return new Window(this, size)
  }

  /** Whether so much more may be granted; it is, then. */
  grow(bytes: number): boolean {
    if (bytes > (budgetBytes - this.#granted) * growthShare) return false
    this.#granted += bytes
    return true
  }

  release(bytes: number): void {
    this.#granted -= bytes
  }
}

/**
 * What the peer may send on one stream. It doubles each time that the app has taken a windowful without ever being too
 * slow, or in a short time: so a slow reader keeps little waiting, and a fast one fills a long path.
 */
export class Window {
  readonly #windows: Windows
  #size: number
  #left: number
  #taken = 0
  #withoutDelay = 0
  /** Taken since. */
  #passed = 0
  #sinceMs: number

  constructor(windows: Windows, size: number) {
    this.#windows = windows
    this.#size = size
    this.#left = size
    this.#sinceMs = windows.now()
  }

  get size(): number {
    return this.#size
  }

  /** Bytes have come; false when the peer may not have sent them. */
  came(bytes: number): boolean {
    this.#left -= bytes
    return this.#left >= 0
  }

  /** The app has taken bytes, and whether some still wait; returns the credit to be given now, or 0. */
  taken(bytes: number, someWait: boolean): number {
    this.#taken += bytes
    this.#withoutDelay = someWait ? 0 : this.#withoutDelay + bytes
    this.#passed += bytes
    if (this.#taken < this.#size * creditShare) return 0
    let credit = this.#taken
    const more = Math.min(this.#size, maxWindow - this.#size)
    if (this.#isFast() && more > 0 && this.#windows.grow(more)) {
      credit += more
      this.#size += more
      this.#withoutDelay = 0
    }
    this.#taken = 0
    this.#left += credit
    return credit
  }

  #isFast(): boolean {
    if (this.#withoutDelay >= this.#size) return true
    if (this.#passed < this.#size) return false
    const now = this.#windows.now()
    const took = now - this.#sinceMs
    this.#passed = 0
    this.#sinceMs = now
    return took < fastMs
  }

  close(): void {
    this.#windows.release(this.#size)
    this.#size = 0
  }
}
