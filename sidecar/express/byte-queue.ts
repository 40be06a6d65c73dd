const chunkBytes = 16 * 1024
const smallBytes = 1024

/**
 * Chunks that nobody uses now. They are used again and again: V8 sees of each the few bytes of its handle only, and
 * would let tens of megabytes of them lie before it collects them.
 */
const idleChunks: Buffer[] = []
const maxIdleChunks = 128

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
        // One small piece is no reason for a whole chunk.
        last = this.#length === 0 && bytes.length - at <= smallBytes ? smallChunk() : fullChunk()
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
    if (first !== undefined) giveBack(first)
    if (this.#chunks.length === 0) this.#to = 0
  }

  /** Forgets what waits. */
  clear(): void {
    for (const chunk of this.#chunks.splice(0)) giveBack(chunk)
    this.#from = 0
    this.#to = 0
    this.#length = 0
  }
}

const nothing = Buffer.alloc(0)

function smallChunk(): Buffer {
  return Buffer.allocUnsafeSlow(smallBytes)
}

function fullChunk(): Buffer {
  return idleChunks.pop() ?? Buffer.allocUnsafeSlow(chunkBytes)
}

function giveBack(chunk: Buffer): void {
  if (chunk.length === chunkBytes && idleChunks.length < maxIdleChunks) idleChunks.push(chunk)
}
