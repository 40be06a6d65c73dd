const chunkBytes = 16 * 1024

/** Bytes that wait, in the order in which they came. Many small pieces share a chunk, so that they cost what they weigh. */
export class ByteQueue {
  readonly #chunks: Buffer[] = []
  /** Of the first chunk, what was taken; of the last one, what is filled. */
  #from = 0
  #to = 0
  #length = 0

  get length(): number {
    return this.#length
  }

  /** Copies. */
  push(bytes: Buffer): void {
    for (let at = 0; at < bytes.length; ) {
      let last = this.#chunks.at(-1)
      if (last === undefined || this.#to === last.length) {
        last = Buffer.allocUnsafeSlow(Math.max(this.#length === 0 ? 1024 : chunkBytes, bytes.length - at))
        this.#chunks.push(last)
        this.#to = 0
      }
      const count = bytes.copy(last, this.#to, at)
      at += count
      this.#to += count
      this.#length += count
    }
  }

  /** The first bytes that lie together; empty when there are none. */
  head(): Buffer {
    const [first] = this.#chunks
    if (first === undefined) return nothing
    return first.subarray(this.#from, this.#chunks.length === 1 ? this.#to : first.length)
  }

  /** So many of the head were taken. */
  drop(count: number): void {
    this.#from += count
    this.#length -= count
    const [first] = this.#chunks
    const end = this.#chunks.length === 1 ? this.#to : (first?.length ?? 0)
    if (this.#from < end) return
    this.#chunks.shift()
    this.#from = 0
    if (this.#chunks.length === 0) this.#to = 0
  }
}

const nothing = Buffer.alloc(0)
