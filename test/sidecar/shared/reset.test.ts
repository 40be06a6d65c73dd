import { once } from 'node:events'
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect,
  createServer,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from 'node:http2'
import type { Socket } from 'node:net'
import { afterEach, describe, expect, it } from 'vitest'
import { resetSession, resetStream } from '../../../sidecar/shared/reset.ts'
import { spliceSockets } from '../../../sidecar/shared/splice.ts'
import { receive, tcpPair } from './tcp.ts'

interface Opened {
  stream: ServerHttp2Stream
  session: ServerHttp2Session
  peer: ClientHttp2Stream
  peerSession: ClientHttp2Session
  /** What the peer gets comes by this socket; while it is paused nothing does. */
  valve: Socket
  /** The other end of the peer's socket. */
  near: Socket
  /** The app's end of what is spliced with `peer`. */
  app: Socket
}

const cleanups: (() => void)[] = []
afterEach(() => {
  for (const cleanup of cleanups.splice(0)) cleanup()
})

async function pair(): Promise<[Socket, Socket]> {
  const sockets = await tcpPair()
  for (const socket of sockets) cleanups.push(() => socket.destroy())
  return sockets
}

/** A stream whose peer has ended its direction and is spliced with an app, with windows that nothing fills. */
async function open(): Promise<Opened> {
  const [[wire, near], [valve, served], [app, a]] = await Promise.all([pair(), pair(), pair()])
  near.pipe(valve).pipe(near)
  const settings = { initialWindowSize: 2 ** 30 }
  const server = createServer({ settings })
  const arrived = once(server, 'stream')
  server.emit('connection', served)
  const peerSession = connect('http://peer', { createConnection: () => wire, settings })
  cleanups.push(() => peerSession.destroy())
  peerSession.on('error', () => undefined)
  peerSession.once('connect', () => peerSession.setLocalWindowSize(2 ** 30))
  const peer = peerSession.request({ ':method': 'CONNECT', ':authority': 'app:1' }, { endStream: false })
  const [stream] = (await arrived) as [ServerHttp2Stream]
  const session = stream.session as ServerHttp2Session
  session.on('error', () => undefined)
  stream.on('error', () => undefined)
  stream.respond({ ':status': 200 })
  await once(peer, 'response')
  void spliceSockets(a, peer)
  const ended = once(stream.resume(), 'end')
  app.end()
  await ended
  return { stream, session, peer, peerSession, valve, near, app }
}

const moment = () => new Promise((resolve) => setTimeout(resolve, 100))

describe('a stream that breaks after its peer has ended', () => {
  it('is no end to the app, though the session had more to send than the wire took', async () => {
    const { stream, valve, app } = await open()
    const seen = receive(app)
    valve.pause()
    stream.write(Buffer.alloc(16 * 1024 * 1024)) // more than the kernel holds
    stream.write('waits in the stream')
    await moment()
    resetStream(stream)
    valve.resume()
    expect((await seen).by).toBe('ECONNRESET')
  })

  it.each([
    ['its session was ended here', ({ peerSession }: Opened) => resetSession(peerSession)],
    ['its session was ended there', ({ session }: Opened) => resetSession(session)],
    ['the connection under it was reset', ({ near }: Opened) => near.resetAndDestroy()],
  ])('is none where %s', async (_how, end) => {
    const opened = await open()
    const seen = receive(opened.app)
    opened.stream.write('some')
    await once(opened.app, 'data')
    end(opened)
    expect(await seen).toEqual({ bytes: Buffer.from('some'), by: 'ECONNRESET' })
  })
})
