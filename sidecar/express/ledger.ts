/** Descriptors above it are not used: connections are bounded far below. */
const maxDescriptor = 65_536

const OPEN = 0
const ELSEWHERE = 1

/**
 * What the two threads know of each other without a message: which descriptors the worker has made (whoever is left
 * when it dies closes them), and how many connections each has.
 */
export class Ledger {
  readonly memory: SharedArrayBuffer
  readonly #counts: Int32Array
  readonly #owned: Uint8Array

  constructor(memory = new SharedArrayBuffer(8 + maxDescriptor)) {
    this.memory = memory
    this.#counts = new Int32Array(memory, 0, 2)
    this.#owned = new Uint8Array(memory, 8)
  }

  /** Connections that the worker carries. */
  get open(): number {
    return this.#counts[OPEN] ?? 0
  }

  /** Captured connections that the main thread carries. */
  get elsewhere(): number {
    return this.#counts[ELSEWHERE] ?? 0
  }

  /** By the worker only. */
  countOpen(change: 1 | -1): void {
    this.#counts[OPEN] = this.open + change
  }

  /** By the main thread only. */
  countElsewhere(change: number): void {
    this.#counts[ELSEWHERE] = this.elsewhere + change
  }

  /** Before anything else is done with it; false when the descriptor cannot be kept account of. */
  own(fd: number): boolean {
    if (fd >= maxDescriptor) return false
    this.#owned[fd] = 1
    return true
  }

  /** Before it is closed, and by whoever it is given to. */
  disown(fd: number): void {
    if (fd < maxDescriptor) this.#owned[fd] = 0
  }

  owned(): number[] {
    return [...this.#owned.keys()].filter((fd) => this.#owned[fd] === 1)
  }
}
