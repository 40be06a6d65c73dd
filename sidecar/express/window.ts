/** What a stream begins with, in bytes; where much is granted already, the lesser. */
const initialWindow = 64 * 1024
const scarceWindow = 16 * 1024
/** One stream may have 4 MiB on its way: 335 Mbit/s at 100 ms. */
const maxWindow = 4 * 1024 * 1024
/** Of all streams of the process: what their apps do not take may come to lie in our memory. */
const budgetBytes = 8 * 1024 * 1024
/** One stream may add this part of what is left: a few that were fast once must not have it all. */
const growthShare = 1 / 2

/** How much all streams may be sent, together. */
export class Windows {
  #granted = 0

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
 * slow: so a slow reader keeps little waiting, and a fast one fills a long path.
 */
export class Window {
  readonly #windows: Windows
  #size: number
  #left: number
  #taken = 0
  #withoutDelay = 0

  constructor(windows: Windows, size: number) {
    this.#windows = windows
    this.#size = size
    this.#left = size
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
    if (this.#taken < this.#size / 2) return 0
    let credit = this.#taken
    if (this.#withoutDelay >= this.#size && this.#size < maxWindow && this.#windows.grow(this.#size)) {
      credit += this.#size
      this.#size *= 2
      this.#withoutDelay = 0
    }
    this.#taken = 0
    this.#left += credit
    return credit
  }

  close(): void {
    this.#windows.release(this.#size)
    this.#size = 0
  }
}
