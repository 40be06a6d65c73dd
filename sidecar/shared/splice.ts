import type { Http2Session, Http2Stream } from 'node:http2'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { descriptorOf, setReading } from './descriptor.ts'
import { keepReading } from './keep-reading.ts'
import type { Moved } from './pump/pump.ts'
import { TCP_CLOSE, tcpState } from './pump/tcp.ts'
import { isReset, isTcp, resetStream } from './reset.ts'

export type Side = 'a' | 'b'

export interface SpliceResult {
  /** Bytes read from `a` and handed to `b`. */
  aToB: number
  bToA: number
  /** `closed`: both directions ended with a FIN. `reset`: one side broke and the other was told by a reset. */
  reason: 'closed' | 'reset' | 'aborted'
  /** Which side broke first, for a `reset`. */
  by?: Side
  error?: unknown
}

export interface SpliceOptions {
  signal?: AbortSignal
  /** Told, perhaps again and again, that much flows in one direction: it may take the splice over. */
  onBulk?: (splice: Splice) => void
  /** How much is much; for tests. */
  bulkBytes?: number
  /** Told each time that the other side takes no more for now of what this side sends. */
  onBlocked?: (splice: Splice, from: Side) => void
  /** Told when the two sides have talked in turn for long: it may take the splice over. */
  onTalk?: (splice: Splice) => void
}

/** What a splice that is carried on elsewhere needs of it. */
export interface Elsewhere {
  moved: Promise<Moved>
  /** Resets what it carries. */
  abort(): void
}

/** Bulk: so many more bytes in one direction than (eight times) in the other, in one go. */
const defaultBulkBytes = 1024 * 1024
const opposedWeight = 8
/** Talk: so many changes of direction in one go. */
const talkTurns = 500
/** A run of bytes that takes longer, in ms, is no bulk, and a run of turns no talk. */
const runMs = 2_000

/**
 * Joins two byte streams (TCP sockets or HTTP/2 streams) until both are closed. A FIN is passed on as a FIN, so
 * each direction ends by itself; anything else is passed on as a reset. Memory is bounded by the two streams'
 * highWaterMarks: a reader pauses while the other side cannot take more. Never rejects.
 */
export function spliceSockets(a: Duplex, b: Duplex, options: SpliceOptions = {}): Promise<SpliceResult> {
  return new Splice(a, b, options).done
}

/** One direction. */
class Way {
  readonly from: Duplex
  readonly to: Duplex
  bytes = 0
  /** The source has ended, and the target was told. */
  ended = false
  halted = false
  /** What the source's end means, where it is not the end of the direction. */
  onEnd: (() => void) | undefined
  /** The target, where it is an HTTP/2 stream. */
  readonly #stream: Http2Stream | undefined
  readonly #bulkBytes: number
  #run = 0
  #runStartedMs = 0

  constructor(from: Duplex, to: Duplex, bulkBytes = defaultBulkBytes) {
    this.from = from
    this.to = to
    this.#stream = sessionOf(to) === undefined ? undefined : (to as Http2Stream)
    this.#bulkBytes = bulkBytes
  }

  /** Passes bytes on; false when the target wants a pause. */
  pass(chunk: Buffer): boolean {
    this.bytes += chunk.length
    if (this.#stream !== undefined) keepReading(this.#stream)
    return this.to.write(chunk)
  }

  /** Whether bulk flows, with this many bytes more. */
  grow(bytes: number): boolean {
    if (this.#run === 0) this.#runStartedMs = performance.now()
    this.#run += bytes
    if (this.#run < this.#bulkBytes) return false
    this.#run = 0
    return performance.now() - this.#runStartedMs < runMs
  }

  shrink(bytes: number): void {
    if (this.#run > 0) this.#run = Math.max(0, this.#run - bytes * opposedWeight)
  }
}

/** A splice under way. Each direction of it can be halted and carried on elsewhere, without losing a byte. */
export class Splice {
  readonly done: Promise<SpliceResult>
  readonly #resolve: (result: SpliceResult) => void
  readonly #options: SpliceOptions
  readonly #ways: Record<Side, Way>
  readonly #result: SpliceResult = { aToB: 0, bToA: 0, reason: 'closed' }
  #elsewhere: Elsewhere | undefined
  /** Who sent last, how often that has changed, and since when. */
  #speaker: Side | undefined
  #turns = 0
  #turnsSinceMs = 0
  /** What is still to be waited for. */
  #open = 2
  /** Sockets that were given up here because they are carried elsewhere. */
  readonly #handedOver = new Set<Duplex>()
  readonly #onAbort = () => this.break('aborted')

  constructor(a: Duplex, b: Duplex, options: SpliceOptions = {}) {
    const { promise, resolve } = Promise.withResolvers<SpliceResult>()
    this.done = promise
    this.#resolve = resolve
    this.#options = options
    this.#ways = { a: new Way(a, b, options.bulkBytes), b: new Way(b, a, options.bulkBytes) }
    this.#attach('a')
    this.#attach('b')
    if (options.signal?.aborted) this.#onAbort()
    else options.signal?.addEventListener('abort', this.#onAbort)
  }

  /** Whether it is under way, and nothing has broken it. */
  get intact(): boolean {
    return this.#result.reason === 'closed' && this.#open > 0
  }

  /** Whether it ended otherwise than by a FIN each way. */
  get isBroken(): boolean {
    return this.#result.reason !== 'closed'
  }

  get isElsewhere(): boolean {
    return this.#elsewhere !== undefined
  }

  stream(side: Side): Duplex {
    return this.#ways[side].from
  }

  /** Whether the bytes from this side have come to their end. */
  hasEnded(side: Side): boolean {
    return this.#ways[side].ended
  }

  /** Resets both sides, and what is carried elsewhere. Idempotent. */
  break(reason: 'reset' | 'aborted', by?: Side, error?: unknown): void {
    const result = this.#result
    if (!this.intact) return
    result.reason = reason
    if (by !== undefined) result.by = by
    if (error !== undefined) result.error = error
    this.#elsewhere?.abort()
    resetStream(this.stream('a'))
    resetStream(this.stream('b'))
  }

  /** Reads no more from the socket on this side; what was read already is passed on. */
  halt(side: Side): void {
    const way = this.#ways[side]
    const socket = way.from as Socket
    way.halted = true
    socket.pause()
    while (socket.read() !== null) way.halted = true // each is passed on by the data listener
    setReading(socket, false) // read() may just have asked for more
  }

  resume(side: Side): void {
    const way = this.#ways[side]
    if (!way.halted) return
    way.halted = false
    setReading(way.from as Socket, true)
    way.from.resume()
  }

  /** Resolves once the socket on this side has been given all that was passed on to it, the end included. */
  async flushed(side: Side): Promise<void> {
    const stream = this.stream(side)
    if (stream.destroyed || (stream.writableEnded ? stream.writableFinished : stream.writableLength === 0))
      return
    const { promise, resolve } = Promise.withResolvers<void>()
    if (stream.writableEnded) stream.once('finish', resolve)
    else stream.write(Buffer.alloc(0), () => resolve())
    stream.once('close', resolve)
    await promise
    stream.off('close', resolve)
  }

  /** The end of what comes from this side is no longer the end of its direction: `then` is called instead. */
  redirectEnd(side: Side, then: () => void): void {
    const way = this.#ways[side]
    if (way.ended) then()
    else way.onEnd = then
  }

  /** From now on the splice is over only when this is, too; whatever breaks breaks both. */
  carryOn(elsewhere: Elsewhere): void {
    this.#elsewhere = elsewhere
    this.#open++
    void elsewhere.moved.then(({ aToB, bToA, broke, error }) => {
      this.#result.aToB += aToB
      this.#result.bToA += bToA
      if (broke !== undefined) this.break('reset', broke, error)
      this.#settle()
    })
  }

  /** The socket on this side lives on elsewhere by a duplicate of its descriptor. */
  handOver(side: Side): void {
    const socket = this.stream(side)
    this.#handedOver.add(socket)
    socket.destroy()
  }

  #attach(side: Side): void {
    const way = this.#ways[side]
    const { from } = way
    this.#copy(way, side)
    from.on('error', (error) => this.#broke(side, error))
    from.on('aborted', () => this.#broke(side))
    const session = sessionOf(from)
    const closed = () => {
      if (!this.#handedOver.has(from) && !isCleanlyClosed(from, session)) this.#broke(side)
      this.#settle()
    }
    if (from.closed) closed()
    else from.once('close', closed)
  }

  #copy(way: Way, side: Side): void {
    const { from, to } = way
    const session = sessionOf(from)
    const { onBulk, onTalk, onBlocked } = this.#options
    const opposed = side === 'a' ? 'b' : 'a'
    from.on('data', (chunk: Buffer) => {
      if (!way.pass(chunk)) {
        from.pause()
        onBlocked?.(this, side)
      }
      if (onTalk !== undefined && this.#speaker !== side) {
        this.#speaker = side
        if (this.#isTalk() && this.intact) onTalk(this)
      }
      if (onBulk === undefined) return
      this.#ways[opposed].shrink(chunk.length)
      if (way.grow(chunk.length) && this.intact) onBulk(this)
    })
    to.on('drain', () => {
      if (!way.halted) from.resume()
    })
    from.resume() // a socket that was paused on purpose does not start by a data listener alone
    from.once('end', () => {
      // Node pushes an end after an RST_STREAM too, and when a session is destroyed, as it is without a word where it breaks
      // after a GOAWAY; only a real END_STREAM may become a FIN.
      // Where the socket lives on elsewhere too, it may have ended there in full since this end came.
      if (isReset(from) || session?.destroyed || (!way.halted && isResetSilently(from))) this.#broke(side)
      else if (way.onEnd !== undefined) way.onEnd()
      else {
        way.ended = true
        to.end()
      }
    })
  }

  /** Counts one more change of direction. */
  #isTalk(): boolean {
    if (this.#turns === 0) this.#turnsSinceMs = performance.now()
    if (++this.#turns < talkTurns) return false
    this.#turns = 0
    return performance.now() - this.#turnsSinceMs < runMs
  }

  #broke(side: Side, error?: unknown): void {
    if (!this.#handedOver.has(this.stream(side))) this.break('reset', side, error)
  }

  #settle(): void {
    if (--this.#open > 0) return
    this.#options.signal?.removeEventListener('abort', this.#onAbort)
    const result = this.#result
    result.aToB += this.#ways.a.bytes
    result.bToA += this.#ways.b.bytes
    this.#resolve(result)
  }
}

/** A TCP error is told once: where a write has met a reset, and not told yet, the next read sees an end. */
function isResetSilently(stream: Duplex): boolean {
  const fd = isTcp(stream) && !stream.writableFinished ? descriptorOf(stream) : undefined
  return fd !== undefined && tcpState(fd) === TCP_CLOSE
}

/** The HTTP/2 session of a stream, which forgets it when it closes. */
function sessionOf(stream: Duplex): Http2Session | undefined {
  return (stream as Partial<Http2Stream>).session
}

/**
 * Node closes an HTTP/2 stream as soon as END_STREAM is on its way in both directions, which may be before it has
 * called the last write finished: in a session that lives, such an end is as clean.
 */
function isCleanlyClosed(stream: Duplex, session: { destroyed: boolean } | undefined): boolean {
  if (!stream.readableEnded || isReset(stream)) return false
  return stream.writableFinished || (stream.writableEnded && session?.destroyed === false)
}
