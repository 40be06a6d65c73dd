import type { Http2Session, Http2Stream } from 'node:http2'
import { isWriteWaiting, setReading } from './descriptor.ts'

/** How often it is looked at streams that were written to, in ms: while some wait, and while none does. */
const lookEveryMs = 20
const watchEveryMs = 200

/** Looked at by and by, as long as there are any; with their sessions, which may wait for room when their streams are over. */
const written = new Map<Http2Stream, Http2Session>()

/**
 * To be called with each write to a stream. Node's HTTP/2 does not read while a write of its own waits for room in the
 * socket: where both ends write much, each would wait for the other to read, for ever. So as long as a stream has bytes that
 * are not sent, its session is made to read on where it waits. That the socket takes everything now does not end it: the
 * peer's next credit can bring more than there is room for. What a peer may send meanwhile is bounded as ever: by its windows, by the
 * rate of its streams, and by Node for frames that want an answer.
 */
export function keepReading(stream: Http2Stream): void {
  const { session } = stream
  if (session === undefined || written.has(stream)) return
  if (written.size === 0) setTimeout(look, lookEveryMs)
  written.set(stream, session)
}

function look(): void {
  let someWait = false
  for (const [stream, session] of written) {
    if (session.destroyed) written.delete(stream)
    else if (isWriteWaiting(session.socket)) {
      setReading(session.socket, true)
      someWait = true
    } else if (stream.destroyed || stream.writableLength === 0) written.delete(stream)
  }
  if (written.size > 0) setTimeout(look, someWait ? lookEveryMs : watchEveryMs)
}
