import type { Splice } from '#shared/splice.ts'

/**
 * What is held of one peer because it does not read. Each stream holds little, but a peer may have many: when all hold
 * too much, none of the apps that they lead to is read until half of it is gone. So it waits, and nobody else does.
 * In each splice `a` is the peer, `b` the app.
 */
export class ByteBudget {
  readonly #maxBytes: number
  /** Every splice of the peer, with what its stream holds. */
  readonly #held = new Map<Splice, number>()
  #bytes = 0
  #full = false

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes
  }

  /** Whether new streams must be refused. */
  get full(): boolean {
    return this.#full
  }

  get bytes(): number {
    return this.#bytes
  }

  watch(splice: Splice): void {
    this.#held.set(splice, 0)
    splice.stream('a').on('drain', () => this.#set(splice, 0))
    void splice.done.then(() => {
      this.#set(splice, 0)
      this.#held.delete(splice)
    })
  }

  /** The peer's stream takes no more for now. */
  blocked(splice: Splice): void {
    this.#set(splice, splice.stream('a').writableLength)
  }

  #set(splice: Splice, bytes: number): void {
    const before = this.#held.get(splice)
    if (before === undefined) return // it is over
    this.#bytes += bytes - before
    this.#held.set(splice, bytes)
    const wasFull = this.#full
    this.#full = this.#bytes > (wasFull ? this.#maxBytes / 2 : this.#maxBytes)
    if (this.#full && !wasFull) for (const one of this.#held.keys()) one.stream('b').pause()
    else if (this.#full)
      splice.stream('b').pause() // the splice itself has just read on
    else if (wasFull) for (const one of this.#held.keys()) readOn(one)
  }
}

/** Not where the app's bytes are read elsewhere by now, or the stream itself takes no more. */
function readOn(splice: Splice): void {
  if (splice.intact && !splice.isElsewhere && !splice.stream('a').writableNeedDrain)
    splice.stream('b').resume()
}
