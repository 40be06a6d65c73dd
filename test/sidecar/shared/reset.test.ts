import { once } from 'node:events'
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect,
  constants,
  createSecureServer,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from 'node:http2'
import type { Socket } from 'node:net'
import { connect as connectTls } from 'node:tls'
import { afterEach, describe, expect, it } from 'vitest'
import { resetSession, resetStream } from '../../../sidecar/shared/reset.ts'
import { type SpliceResult, spliceSockets } from '../../../sidecar/shared/splice.ts'
import { selfSigned } from './certificates.ts'
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
  splice: Promise<SpliceResult>
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

/** A stream whose peer is spliced with an app, which has ended its direction, with windows that nothing fills. */
async function open({ appEnds = true } = {}): Promise<Opened> {
  const [[wire, near], [valve, served], [app, a]] = await Promise.all([pair(), pair(), pair()])
  for (const socket of [wire, served]) socket.allowHalfOpen = false // as those that sessions have
  near.pipe(valve).pipe(near)
  const settings = { initialWindowSize: 2 ** 30 }
  const server = createSecureServer({ ...(await selfSigned()), settings })
  const arrived = once(server, 'stream')
  server.emit('connection', served)
  const tls = connectTls({ socket: wire, ALPNProtocols: ['h2'], rejectUnauthorized: false })
  await once(tls, 'secureConnect')
  const peerSession = connect('https://peer', { createConnection: () => tls, settings })
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
  const splice = spliceSockets(a, peer)
  stream.resume()
  if (appEnds) await Promise.all([once(stream, 'end'), app.end()])
  return { splice, stream, session, peer, peerSession, valve, near, app }
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
    [
      'the connection under it was reset, and a GOAWAY had come before',
      async ({ session, peerSession, near }: Opened) => {
        session.goaway(constants.NGHTTP2_NO_ERROR)
        await once(peerSession, 'goaway')
        await moment()
        near.resetAndDestroy()
      },
    ],
  ])('is none where %s', async (_how, end) => {
    const opened = await open()
    const seen = receive(opened.app)
    opened.stream.write('some')
    await once(opened.app, 'data')
    await end(opened)
    expect(await seen).toEqual({ bytes: Buffer.from('some'), by: 'ECONNRESET' })
  })
})

it('a splice is over when the peer closes its stream without a code, though nothing else has ended', async () => {
  const { stream, splice } = await open({ appEnds: false })
  stream.destroy()
  expect(await splice).toMatchObject({ reason: 'reset', by: 'b' })
})
