import type { Http2Session } from 'node:http2'
import { isWriteWaiting, setReading } from './descriptor.ts'

/** How often it is looked at sessions that were written to, in ms. */
const lookEveryMs = 20

/** Looked at by and by, as long as there are any. */
const written = new Set<Http2Session>()

/**
 * To be called with each write to a stream of the session. Node's HTTP/2 does not read while a write of its own waits for
 * room in the socket: where both ends write much, each would wait for the other to read, for ever. So a session that was
 * written to is looked at until that is through, and made to read on where it waits. What a peer may send meanwhile is
 * bounded as ever: by its windows, by the rate of its streams, and by Node for frames that want an answer.
 */
export function keepReading(session: Http2Session): void {
  if (written.has(session)) return
  if (written.size === 0) setTimeout(look, lookEveryMs)
  written.add(session)
}

function look(): void {
  for (const session of written) {
    if (!session.destroyed && isWriteWaiting(session.socket)) setReading(session.socket, true)
    else written.delete(session)
  }
  if (written.size > 0) setTimeout(look, lookEveryMs)
}
