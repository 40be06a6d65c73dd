import type { Duplex } from 'node:stream'
import type { ErrorCode } from './errors.ts'

export interface SpliceResult {
  /** Bytes read from `a` and handed to `b`. */
  aToB: number
  bToA: number
  /** `closed`: both directions ended with a FIN. `reset`: one side broke and the other was told by a reset. */
  reason: 'closed' | 'reset' | 'aborted'
  /** Which side broke first, for a `reset`. */
  by?: 'a' | 'b'
  error?: unknown
}

/** RST_STREAM code for a broken CONNECT (RFC 9113, 8.5: "treat as CONNECT_ERROR"). */
const h2ConnectError = 0x0a

/**
 * Joins two byte streams (TCP sockets or HTTP/2 streams) until both are closed. A FIN is passed on as a FIN, so
 * each direction ends by itself; anything else is passed on as a reset. Memory is bounded by the two streams'
 * highWaterMarks: a reader pauses while the other side cannot take more. Never rejects.
 */
export function spliceSockets(
  a: Duplex,
  b: Duplex,
  options: { signal?: AbortSignal } = {},
): Promise<SpliceResult> {
  const { promise, resolve } = Promise.withResolvers<SpliceResult>()
  const result: SpliceResult = { aToB: 0, bToA: 0, reason: 'closed' }
  let open = 2

  const breakBoth = (reason: 'reset' | 'aborted', by?: 'a' | 'b', error?: unknown) => {
    if (result.reason !== 'closed') return
    result.reason = reason
    if (by !== undefined) result.by = by
    if (error !== undefined) result.error = error
    resetStream(a)
    resetStream(b)
  }
  const onAbort = () => breakBoth('aborted')
  const attach = (from: Duplex, to: Duplex, side: 'a' | 'b', count: (bytes: number) => void) => {
    copy(from, to, count, () => breakBoth('reset', side))
    from.on('error', (error) => breakBoth('reset', side, error))
    from.on('aborted', () => breakBoth('reset', side))
    const closed = () => {
      if (!isCleanlyClosed(from)) breakBoth('reset', side)
      if (--open > 0) return
      options.signal?.removeEventListener('abort', onAbort)
      resolve(result)
    }
    if (from.closed) closed()
    else from.once('close', closed)
  }
  attach(a, b, 'a', (bytes) => {
    result.aToB += bytes
  })
  attach(b, a, 'b', (bytes) => {
    result.bToA += bytes
  })
  if (options.signal?.aborted) onAbort()
  else options.signal?.addEventListener('abort', onAbort)
  return promise
}

function copy(from: Duplex, to: Duplex, count: (bytes: number) => void, broken: () => void): void {
  from.on('data', (chunk: Buffer) => {
    count(chunk.length)
    if (!to.write(chunk)) from.pause()
  })
  to.on('drain', () => from.resume())
  from.resume() // a socket that was paused on purpose does not start by a data listener alone
  from.once('end', () => {
    // Node pushes an end after an RST_STREAM too; only a real END_STREAM may become a FIN.
    if (isReset(from)) broken()
    else to.end()
  })
}

function isReset(stream: Duplex): boolean {
  return 'rstCode' in stream && typeof stream.rstCode === 'number' && stream.rstCode !== 0
}

function isCleanlyClosed(stream: Duplex): boolean {
  return stream.readableEnded && stream.writableFinished && !isReset(stream)
}

/** Ends a stream so that its peer sees a reset: TCP RST, or RST_STREAM. Idempotent; never throws. */
export function resetStream(stream: Duplex): void {
  // A reset by us is expected to be followed by an error event on some streams; it carries nothing new.
  stream.on('error', () => undefined)
  if (stream.destroyed) return
  if ('rstCode' in stream && 'close' in stream && typeof stream.close === 'function') {
    // Node ends the writable side first, which would send END_STREAM: the far app would see a FIN before the reset.
    stream._final = (done) => done()
    stream.close(h2ConnectError)
    // It closes only once it is read to its end, and nobody reads it any more.
    stream.removeAllListeners('data').resume()
  } else if (isTcp(stream)) resetTcp(stream)
  else stream.destroy()
}

type Tcp = Duplex & { resetAndDestroy(): void }

function isTcp(stream: Duplex): stream is Tcp {
  return 'resetAndDestroy' in stream && typeof stream.resetAndDestroy === 'function'
}

/**
 * libuv refuses to reset a socket whose shutdown(2) is under way (EINVAL), and Node then leaves it open for ever: so
 * the FIN, which is all that is left to be sent, goes out first.
 */
function resetTcp(socket: Tcp): void {
  const isShuttingDown = socket.writableEnded && !socket.writableFinished && socket.writableLength === 0
  if (isShuttingDown) socket.once('finish', () => socket.resetAndDestroy())
  else socket.resetAndDestroy()
}

/** The code of ours for a failed TCP connect; what the dialled side says over the wire and shows to the app. */
export function connectFailureOf(code: string): Extract<ErrorCode, 'refused' | 'timeout' | 'unreachable'> {
  if (code === 'ECONNREFUSED' || code === 'ECONNRESET') return 'refused'
  if (code === 'ETIMEDOUT' || code === 'timeout') return 'timeout'
  return 'unreachable'
}
