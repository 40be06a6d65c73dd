import { createHash, type Hash } from 'node:crypto'
import type { Socket } from 'node:net'

/**
 * The little protocol of the conformance suite. A client's first line says what the server is to do with the
 * connection; both ends run as processes of their own inside pods.
 *
 * - `echo`            send back all that comes, and the FIN
 * - `sink`            read until the FIN, then answer one line with count and SHA-256
 * - `source N SEED`   send N bytes of the stream of SEED, then the FIN
 * - `fin-first`       send `bye` and the FIN at once, then read on; the server's log line says how much came
 * - `reset N`         send N bytes, then reset
 * - `await-reset N`   say `got` after N bytes and read on; the server prints how the connection ended
 * - `slow N`          read N bytes, then stop reading for good
 * - `duplex N SEED`   send N bytes of the stream of SEED while reading until the FIN; then one line as `sink`, and the FIN
 * - `break N SEED`    send N bytes of the stream of SEED and reset, whatever of them has arrived
 */
export const modes = [
  'echo',
  'sink',
  'source',
  'fin-first',
  'reset',
  'await-reset',
  'slow',
  'duplex',
  'break',
] as const

const blockSize = 64 * 1024

/** A pseudo-random byte stream, the same for the same seed: xorshift32 fills a block, each block differs. */
export class SeededBytes {
  #state: number

  constructor(seed: number) {
    this.#state = seed | 1
  }

  block(length = blockSize): Buffer {
    const words = new Uint32Array(Math.ceil(length / 4))
    let s = this.#state
    for (let i = 0; i < words.length; i++) {
      s ^= s << 13
      s ^= s >>> 17
      s ^= s << 5
      words[i] = s
    }
    this.#state = s
    return Buffer.from(words.buffer, 0, length)
  }
}

/** Compares what comes with the first `total` bytes of a seed's stream; what comes after them is kept. */
export class SeededCheck {
  readonly #bytes: SeededBytes
  #left: number
  #expected: Buffer = Buffer.alloc(0)
  /** Bytes that came and were right. */
  correct = 0
  rest = ''

  constructor(total: number, seed: number) {
    this.#bytes = new SeededBytes(seed)
    this.#left = total
  }

  /** Throws at the first byte that is wrong. */
  take(chunk: Buffer): void {
    for (let at = 0; at < chunk.length; ) {
      if (this.#expected.length === 0 && this.#left > 0) {
        this.#expected = this.#bytes.block(Math.min(this.#left, blockSize))
        this.#left -= this.#expected.length
      }
      if (this.#expected.length === 0) {
        this.rest += chunk.toString('latin1', at)
        return
      }
      const part = chunk.subarray(at, at + this.#expected.length)
      if (!part.equals(this.#expected.subarray(0, part.length)))
        throw new Error(`wrong bytes somewhere in ${this.correct} to ${this.correct + part.length}`)
      this.#expected = this.#expected.subarray(part.length)
      this.correct += part.length
      at += part.length
    }
  }
}

/** Writes `total` bytes of the seed's stream, as fast as the socket takes them; resolves when all are handed over. */
export async function sendSeeded(socket: Socket, total: number, seed: number): Promise<string> {
  const bytes = new SeededBytes(seed)
  const hash = createHash('sha256')
  for (let left = total; left > 0; ) {
    const block = bytes.block(Math.min(left, blockSize))
    hash.update(block)
    left -= block.length
    if (!socket.write(block)) await drained(socket)
  }
  return hash.digest('hex')
}

function drained(socket: Socket): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const onClose = () => reject(new Error('the connection closed while sending'))
  socket.once('drain', () => {
    socket.off('close', onClose)
    resolve()
  })
  socket.once('close', onClose)
  return promise
}

export interface Received {
  bytes: number
  sha256: string
  /** `end`: a FIN came. `reset`: ECONNRESET. Else the error's code. */
  by: string
}

/** Reads until the other side ends. */
export function receiveAll(socket: Socket): Promise<Received> {
  const { promise, resolve } = Promise.withResolvers<Received>()
  const hash: Hash = createHash('sha256')
  let bytes = 0
  let settled = false
  const settle = (by: string) => {
    if (settled) return
    settled = true
    resolve({ bytes, sha256: hash.digest('hex'), by })
  }
  socket.on('data', (chunk) => {
    bytes += chunk.length
    hash.update(chunk)
  })
  socket.resume()
  socket.once('end', () => settle('end'))
  socket.once('error', (error) =>
    settle('code' in error && error.code === 'ECONNRESET' ? 'reset' : String(error)),
  )
  socket.once('close', () => settle('close'))
  return promise
}

/** The first line of a connection; what came after it is put back. Throws where the connection ends before it. */
export function readLine(socket: Socket): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  let text = ''
  const onEnd = () => reject(new Error('ended before the first line'))
  const onData = (chunk: Buffer) => {
    text += chunk.toString('latin1')
    const end = text.indexOf('\n')
    if (end < 0 && text.length < 1_000) return
    socket.off('data', onData)
    socket.off('end', onEnd)
    socket.off('close', onEnd)
    socket.pause()
    if (text.length > end + 1) socket.unshift(Buffer.from(text.slice(end + 1), 'latin1'))
    resolve(text.slice(0, end))
  }
  socket.on('data', onData)
  socket.resume()
  socket.once('end', onEnd)
  socket.once('close', onEnd)
  return promise
}
