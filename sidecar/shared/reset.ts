import type { Http2Session } from 'node:http2'
import type { Duplex } from 'node:stream'
import { EdgeMeshError } from './errors.ts'

/** RST_STREAM code for a broken CONNECT (RFC 9113, 8.5: "treat as CONNECT_ERROR"). */
const h2ConnectError = 0x0a
const h2Cancel = 0x08

/** Whether an HTTP/2 stream was reset, by either side. */
export function isReset(stream: Duplex): boolean {
  return 'rstCode' in stream && typeof stream.rstCode === 'number' && stream.rstCode !== 0
}

/** Ends a stream so that its peer sees a reset: TCP RST, or RST_STREAM. Idempotent; never throws. */
export function resetStream(stream: Duplex): void {
  // A reset by us is expected to be followed by an error event on some streams; it carries nothing new.
  stream.on('error', () => undefined)
  if (stream.destroyed) return
  if ('rstCode' in stream && 'close' in stream && typeof stream.close === 'function') {
    // Node ends the writable side first, and with the last bytes that wait in it sends END_STREAM; a reset that waits for
    // the session's socket goes out after those, to nobody: the far app would take a part for the whole. A stream that the
    // peer has just closed is ended in vain, and not destroyed before that.
    if (!stream.closed) stream.end = () => stream
    stream.close(h2ConnectError)
    // It closes only once it is read to its end, and nobody reads it any more.
    stream.removeAllListeners('data').resume()
  } else if (isTcp(stream)) resetTcp(stream)
  else stream.destroy()
}

/**
 * Ends a session, and what is open in it by a reset. Without a code the end of a stream looks like one that was sent, and
 * Node takes the code only with an error.
 */
export function resetSession(session: Http2Session, code = h2Cancel): void {
  session.destroy(new EdgeMeshError('reset', 'Cannot go on: the session was ended.'), code)
}

export type Tcp = Duplex & { resetAndDestroy(): void }

/** A TLSSocket has the method, and throws. */
export function isTcp(stream: Duplex): stream is Tcp {
  return (
    'resetAndDestroy' in stream && typeof stream.resetAndDestroy === 'function' && !('encrypted' in stream)
  )
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
