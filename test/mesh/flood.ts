// A hostile sidecar: floods a tunnel endpoint, or the server, with the certificate or token of a pod.
//   node flood.ts streams|unread|resets|handshakes --ca FOLDER --uid UID --to IP --expect UID
//   node flood.ts control|joins --server HOST:PORT --token FILE --bundle FILE --uid UID --expect UID
// Prints one JSON line once the flood stands, keeps it up until a line comes on standard input, and ends.
import { once } from 'node:events'
import { type ClientHttp2Session, type ClientHttp2Stream, connect as connectHttp2 } from 'node:http2'
import { connect, type Socket } from 'node:net'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { podServerName } from '#shared/identity.ts'
import { ports } from '#shared/ports.ts'
import { createKeyPair } from '#shared/tls.ts'
import { CertificateAuthority } from '../../sidecar/shared/authority/certificate-authority.ts'
import { openMeshClient } from '../bench/load/mesh-client.ts'

const text = { type: 'string', default: '' } as const
const options = { ca: text, uid: text, to: text, expect: text, server: text, token: text, bundle: text }
const { values, positionals } = parseArgs({ options, allowPositionals: true })
const { ca, uid, to, expect, server, token, bundle } = values
const trustDomain = 'cluster.local'
/** More than a peer may have; and as many as hold more than a peer may leave unread, with fewer streams than it may have. */
const sessions = { streams: 40, unread: 19 }
const streamsPerSession = 100
const pingEveryMs = 4_000

/** Sessions with good certificates, as many as the endpoint lets stand. */
async function openSessions(count: number): Promise<ClientHttp2Session[]> {
  const authority = await CertificateAuthority.open(ca, trustDomain)
  const keys = await createKeyPair()
  const identity = { trustDomain, namespace: 'default', serviceAccount: 'default', podUid: uid }
  const { chain: cert } = await authority.issue(identity, keys.publicKey, 600_000)
  const open: ClientHttp2Session[] = []
  for (let i = 0; i < count; i++) {
    const session = connectHttp2(`https://${to}:${ports.tunnel}`, {
      cert,
      key: keys.privateKey.reveal(),
      servername: podServerName(expect, trustDomain),
      rejectUnauthorized: false,
    })
    session.on('error', () => undefined) // its close says enough
    const { promise, resolve } = Promise.withResolvers<void>()
    session.once('remoteSettings', () => session.ping(() => resolve()))
    session.once('close', resolve)
    // As every dialler does: one that is silent is cut off.
    const pings = setInterval(() => !session.destroyed && session.ping(() => undefined), pingEveryMs)
    session.once('close', () => clearInterval(pings))
    await promise
    if (!session.closed && !session.destroyed) open.push(session)
  }
  return open
}

/** The status of one CONNECT to the traffic server; 0 where there is none. What comes on it is never read. */
async function openStream(session: ClientHttp2Session, line: string): Promise<number> {
  const stream: ClientHttp2Stream = session.request(
    { ':method': 'CONNECT', ':authority': `${to}:8080` },
    { endStream: false },
  )
  const { promise, resolve } = Promise.withResolvers<number>()
  stream.on('error', () => undefined)
  stream.once('response', (headers) => resolve(headers[':status'] ?? 0))
  stream.once('close', () => resolve(0))
  stream.write(`${line}\n`)
  return promise
}

/** How often each status came, and how many sessions there are. */
async function streams(): Promise<object> {
  const open = await openSessions(sessions.streams)
  const counts: Record<number, number> = {}
  for (const session of open) {
    const all = Array.from({ length: streamsPerSession }, () => openStream(session, 'echo'))
    for (const status of await Promise.all(all)) counts[status] = (counts[status] ?? 0) + 1
  }
  return { sessions: open.length, counts }
}

/**
 * Streams whose bytes are not read, until the endpoint takes no more of them: by then fewer than it lets a peer have. Some
 * 200 kB for each: what an app has written beyond what is read is in the kernel, whose memory for TCP is that of all.
 */
async function unread(): Promise<object> {
  for (const session of await openSessions(sessions.unread)) {
    const all = Array.from({ length: streamsPerSession }, () => openStream(session, 'source 200000 7'))
    const refused = (await Promise.all(all)).find((status) => status !== 200)
    if (refused !== undefined) return { status: refused }
  }
  return { status: 200 }
}

/** Streams that are opened and reset as fast as they can be, until the endpoint ends the session, or there were far too many. */
async function resets(): Promise<object> {
  const [session] = await openSessions(1)
  let opened = 0
  while (session !== undefined && !session.destroyed && opened < 100_000) {
    for (let i = 0; i < 50 && !session.closed && !session.destroyed; i++, opened++) {
      const stream = session.request(
        { ':method': 'CONNECT', ':authority': `${to}:8080` },
        { endStream: false },
      )
      stream.on('error', () => undefined)
      stream.close()
    }
    const { promise, resolve } = Promise.withResolvers<void>()
    session.once('close', resolve)
    if (!session.ping(() => resolve())) break // it is closed
    await promise
    session.off('close', resolve)
  }
  return { ended: session?.destroyed ?? false, opened }
}

/** TLS handshakes that never go on: how many of them the endpoint lets stand. */
async function handshakes(): Promise<object> {
  const hello = Buffer.from([0x16, 3, 1, 2, 0, 1]) // a record that lacks all but its first bytes
  const open = new Set<Socket>()
  const count = 600
  const closed = Promise.withResolvers<void>()
  for (let i = 0; i < count; i++) {
    const socket = connect({ host: to, port: ports.tunnel })
    socket.on('error', () => undefined)
    open.add(socket)
    socket.once('close', () => {
      open.delete(socket)
      if (open.size <= count / 2) closed.resolve()
    })
    await once(socket, 'connect')
    socket.write(hello)
  }
  await closed.promise
  return { tried: count }
}

async function client(onMessage: Parameters<typeof openMeshClient>[1]['onMessage']) {
  const [host = '', port = ''] = server.split(':')
  const mesh = await openMeshClient(
    { uid, tokenFile: token },
    { server: { host, port: Number(port) }, trustBundleFile: bundle, ...(onMessage && { onMessage }) },
  )
  await mesh.channel.untilUp(30_000)
  return mesh.channel
}

/** Messages without end, until the server has had enough. */
async function control(): Promise<object> {
  const channel = await client(undefined)
  let sent = 0
  while (channel.up) {
    for (let i = 0; i < 100; i++) channel.send({ type: 'subscribe', service: `default/none-${sent++ % 400}` })
    await new Promise((resolve) => setImmediate(resolve))
  }
  return { sent, up: channel.up }
}

/** Relayed connections that nobody comes to. */
async function joins(): Promise<object> {
  const asked = 180
  const answers = { ticket: 0, limit: 0, other: 0 }
  const { promise, resolve } = Promise.withResolvers<void>()
  const channel = await client((message) => {
    if (message.type === 'ticket') answers.ticket++
    else if (message.type === 'failed') answers[message.code === 'limit' ? 'limit' : 'other']++
    if (answers.ticket + answers.limit + answers.other === asked) resolve()
  })
  for (let id = 1; id <= asked; id++) channel.send({ type: 'relay', id, podUid: expect })
  await promise
  return { asked, ...answers }
}

const floods: Record<string, () => Promise<object>> = {
  streams,
  unread,
  resets,
  handshakes,
  control,
  joins,
}
const keepAlive = setInterval(() => undefined, 1_000)
console.log(JSON.stringify(await floods[positionals[0] ?? '']?.()))
await once(createInterface({ input: process.stdin }), 'line')
clearInterval(keepAlive)
process.exit(0)
