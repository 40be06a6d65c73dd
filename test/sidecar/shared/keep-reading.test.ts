import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import {
  type ClientHttp2Session,
  connect,
  createSecureServer,
  type Http2Stream,
  type ServerHttp2Stream,
} from 'node:http2'
import type { AddressInfo, Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { CertificateAuthority } from '../../../sidecar/shared/authority/certificate-authority.ts'
import { keepReading } from '../../../sidecar/shared/keep-reading.ts'
import { spliceSockets } from '../../../sidecar/shared/splice.ts'
import { createKeyPair } from '../../../sidecar/shared/tls.ts'
import { identityFor, pod, trustDomain } from '../../server/harness.ts'
import { receive, tcpPair } from './tcp.ts'

const streams = 8
const bytesOfEach = 10_000_000
/** As the sidecar has them: more than the kernel takes in that nobody reads. */
const settings = { initialWindowSize: 1024 * 1024, enablePush: false }
/** In MB: all of it is written at once. */
const maxSessionMemory = 1_000
const sessionWindow = 6 * 1024 * 1024

/** Sends so much, then ends; resolves with how much came, and how it ended. */
async function talk(app: Socket): Promise<[number, string]> {
  app.end(Buffer.alloc(bytesOfEach))
  const { bytes, by } = await receive(app)
  return [bytes.length, by]
}

async function sessions(
  onStream: (stream: ServerHttp2Stream) => void,
): Promise<{ session: ClientHttp2Session; close: () => void }> {
  const folder = mkdtempSync(join(tmpdir(), 'emt-'))
  const authority = await CertificateAuthority.open(folder, trustDomain)
  const keys = await createKeyPair()
  const { chain } = await authority.issue(identityFor(pod('bob')), keys.publicKey, 600_000)
  const server = createSecureServer({
    key: keys.privateKey.reveal(),
    cert: chain,
    settings,
    maxSessionMemory,
  })
  server.on('session', (session) => session.setLocalWindowSize(sessionWindow))
  server.on('stream', (stream) => {
    stream.respond({ ':status': 200 })
    onStream(stream)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const session = connect(`https://127.0.0.1:${port}`, {
    rejectUnauthorized: false,
    settings,
    maxSessionMemory,
  })
  await once(session, 'remoteSettings')
  session.setLocalWindowSize(sessionWindow)
  const close = () => {
    session.destroy()
    server.close()
    rmSync(folder, { recursive: true })
  }
  return { session, close }
}

const request = { ':method': 'CONNECT', ':authority': 'app:80' }

it('bulk both ways on one HTTP/2 session does not stall, though both ends wait with their writes', async () => {
  const far: Promise<[number, string]>[] = []
  const { session, close } = await sessions(async (stream) => {
    const [app, upstream] = await tcpPair()
    void spliceSockets(stream, upstream)
    far.push(talk(app))
  })
  const near = Array.from({ length: streams }, async () => {
    const stream = session.request(request, { endStream: false })
    const [[app, captured]] = await Promise.all([tcpPair(), once(stream, 'response')])
    void spliceSockets(captured, stream)
    return talk(app)
  })
  const whole = Array.from({ length: streams }, () => [bytesOfEach, 'fin'])
  expect(await Promise.all(near)).toEqual(whole)
  expect(await Promise.all(far)).toEqual(whole)
  close()
})

it('it does not stall later either, when what was written long ago gets credit', async () => {
  /** One write of all, and nothing more is written that it could be looked at for. */
  const exchange = async (stream: Http2Stream): Promise<number> => {
    keepReading(stream)
    stream.end(Buffer.alloc(bytesOfEach))
    let bytes = 0
    for await (const chunk of stream) bytes += chunk.length
    return bytes
  }
  const far: Promise<number>[] = []
  const { session, close } = await sessions((stream) => far.push(exchange(stream)))
  const near = Array.from({ length: streams }, () => exchange(session.request(request, { endStream: false })))
  const whole = Array.from({ length: streams }, () => bytesOfEach)
  expect(await Promise.all(near)).toEqual(whole)
  expect(await Promise.all(far)).toEqual(whole)
  close()
})
