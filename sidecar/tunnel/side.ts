import type { Http2Session, Http2Stream } from 'node:http2'
import type { Duplex } from 'node:stream'
import type { TLSSocket } from 'node:tls'
import { descriptorOf, setReading } from '#shared/descriptor.ts'
import { EdgeMeshError } from '#shared/errors.ts'
import { withDeadline } from '#shared/lifecycle.ts'
import type { Moved, Side as SideConnection } from '#shared/pump/pump.ts'
import type { Side, Splice } from '#shared/splice.ts'

/**
 * A side connection carries one bulk stream of an HTTP/2 session on, over a TLS connection of its own that the pump
 * moves: an HTTP/2 session in JavaScript has half its speed at twice its cost. Both ends of the stream change over,
 * each direction by itself: its sender ends it on the session and goes on on the side connection.
 *
 * On a socket to the tunnel endpoint, the dialler first sends `preamble` in the clear, which tells it from TLS, and
 * the other answers `ready`. Then both are TLS in the pump; the name of the stream goes first (see SideConnection).
 */
export const preamble = Buffer.from('EMSIDE1\n')
/** The same for a lane (see express/lane.ts). */
export const lanePreamble = Buffer.from('EMLANE1\n')
export const ready = Buffer.from('+')

/** How long the peer may take to say that it is ready, in ms. */
const readyDeadlineMs = 5_000

/** Dialler: says what the socket is for; resolves, with the socket paused, once the other end waits for TLS. */
export async function introduce(socket: Duplex, saying: Buffer, what: string): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<Buffer>()
  const onClose = () => reject(new EdgeMeshError('refused', `Cannot ${what}: the peer refuses.`))
  socket.on('error', () => undefined) // followed by close
  socket.once('close', onClose)
  socket.once('data', resolve)
  try {
    if (descriptorOf(socket) === undefined)
      throw new EdgeMeshError('refused', `Cannot ${what}: the relay goes inside TLS.`)
    socket.write(saying)
    const answer = await withDeadline(promise, readyDeadlineMs, what)
    socket.pause()
    if (!answer.equals(ready))
      throw new EdgeMeshError('refused', `Cannot ${what}: the peer answers something else.`)
  } catch (error) {
    socket.destroy()
    throw error
  } finally {
    socket.off('close', onClose)
  }
}

/** Acceptor: says that it waits for TLS; `take` gets the descriptor, to be duplicated at once, or undefined. */
export function welcome(socket: Duplex, take: (fd: number | undefined) => void): void {
  if (descriptorOf(socket) === undefined) {
    take(undefined)
    socket.destroy()
    return
  }
  setReading(socket, false) // what comes after our answer is for the worker, from the first byte on
  socket.write(ready, () => {
    take(descriptorOf(socket))
    socket.destroy()
  })
}

const label = 'EXPERIMENTAL-edgemesh-side-connection'
const sessionNameBytes = 16

/** What both ends of a session know, and nobody else: derived from its TLS keys. */
export function sessionNameOf(session: Http2Session): Buffer {
  return (session.socket as TLSSocket).exportKeyingMaterial(sessionNameBytes, label, Buffer.alloc(0))
}

export function streamNameOf(sessionName: Buffer, streamId: number): Buffer {
  const id = Buffer.alloc(4)
  id.writeUInt32BE(streamId)
  return Buffer.concat([sessionName, id])
}

/** The two parts of a stream's name. */
export function parseStreamName(name: Uint8Array): { session: string; streamId: number } {
  const bytes = Buffer.from(name)
  return {
    session: bytes.toString('hex', 0, sessionNameBytes),
    streamId: bytes.readUInt32BE(sessionNameBytes),
  }
}

/** Moves one end of a stream to its side connection. */
export class Mover {
  readonly #splice: Splice
  readonly #side: SideConnection
  /** The app's socket, and the session's stream. */
  readonly #app: Side
  readonly #stream: Side
  #moved = 0

  constructor(splice: Splice, side: SideConnection, app: Side) {
    this.#splice = splice
    this.#side = side
    this.#app = app
    this.#stream = app === 'a' ? 'b' : 'a'
  }

  /**
   * From now on the end of what the session brings means that the rest comes by the side connection. To be called
   * before the other end can know that it may change over.
   */
  expect(): void {
    const splice = this.#splice
    splice.carryOn({
      moved: this.#side.moved.then((m) => this.#asSeenBySplice(m)),
      abort: () => this.#side.abort(),
    })
    const wasOver = splice.hasEnded(this.#stream)
    splice.redirectEnd(this.#stream, () => void this.#receive(wasOver))
  }

  /** What the app sends goes by the side connection from now on. */
  send(): void {
    const splice = this.#splice
    if (!splice.intact) return
    const wasOver = splice.hasEnded(this.#app)
    const fd = descriptorOf(splice.stream(this.#app))
    if (!wasOver && fd === undefined) {
      splice.break('reset', this.#app)
      return
    }
    if (!wasOver) {
      splice.halt(this.#app)
      ;(splice.stream(this.#stream) as Http2Stream).end()
    }
    this.#side.feed(wasOver ? undefined : fd, splice.hasEnded(this.#stream))
    this.#count()
  }

  async #receive(wasOver: boolean): Promise<void> {
    const splice = this.#splice
    await splice.flushed(this.#app)
    if (!splice.intact) return
    const fd = descriptorOf(splice.stream(this.#app))
    if (!wasOver && fd === undefined) splice.break('reset', this.#app)
    else this.#side.drain(wasOver ? undefined : fd)
    this.#count()
  }

  /** With both directions moved, the app's socket lives on in the pump. */
  #count(): void {
    if (++this.#moved === 2) this.#splice.handOver(this.#app)
  }

  #asSeenBySplice({ aToB, bToA, broke, error }: Moved): Moved {
    if (this.#app === 'a') return { aToB, bToA, ...(broke && { broke }), ...(error && { error }) }
    const other = broke && (broke === 'a' ? 'b' : 'a')
    return { aToB: bToA, bToA: aToB, ...(other && { broke: other }), ...(error && { error }) }
  }
}
