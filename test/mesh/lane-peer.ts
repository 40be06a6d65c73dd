// A peer that speaks the lanes' protocol itself, with a certificate of our choice made by the lab's own CA:
//   node lane-peer.ts CASE --ca FOLDER --uid UID --to IP --expect UID [--authority IP:PORT ...]
// Prints what its pod's lane has answered: {"answers": {"IP:PORT": why}}, or {"ended": true} once it was cut off.
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { type TLSSocket, connect as tlsConnect } from 'node:tls'
import { parseArgs } from 'node:util'
import { podServerName } from '#shared/identity.ts'
import { ports } from '#shared/ports.ts'
import { createKeyPair } from '#shared/tls.ts'
import { flowKeyOf, socketAddress } from '../../sidecar/express/address.ts'
import { ANSWER, DATA, FrameReader, headerBytes, OPEN, writeHeader } from '../../sidecar/express/frames.ts'
import { endings } from '../../sidecar/express/messages.ts'
import { CertificateAuthority } from '../../sidecar/shared/authority/certificate-authority.ts'
import { lanePreamble, ready } from '../../sidecar/tunnel/side.ts'

const text = { type: 'string', default: '' } as const
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { ca: text, uid: text, to: text, expect: text, authority: { type: 'string', multiple: true } },
})
const authorities = values.authority ?? []

function frame(type: number, stream: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(headerBytes)
  writeHeader(header, 0, type, payload.length, stream)
  return Buffer.concat([header, payload])
}

/** Grants nothing, so that what the app answers stays where it is. */
function open(stream: number, authority: string): Buffer {
  const [address = '', port] = authority.split(':')
  const key = flowKeyOf(socketAddress({ address, port: Number(port) }) ?? Buffer.alloc(16), 4)
  return frame(OPEN, stream, Buffer.concat([Buffer.alloc(4), Buffer.from(key, 'latin1')]))
}

/** A connection to the tunnel endpoint that waits for TLS. */
async function introduced(): Promise<Socket> {
  const socket = connect({ host: values.to, port: ports.tunnel, noDelay: true })
  socket.on('error', () => undefined) // its end is enough
  socket.write(lanePreamble)
  const [answer] = await once(socket, 'data')
  if (!ready.equals(answer)) throw new Error(`it says ${answer}`)
  return socket
}

async function lane(): Promise<TLSSocket> {
  const authority = await CertificateAuthority.open(values.ca, 'cluster.local')
  const keys = await createKeyPair()
  const trustDomain = 'cluster.local'
  const identity = { trustDomain, namespace: 'default', serviceAccount: 'default', podUid: values.uid }
  const { chain, trustBundle } = await authority.issue(identity, keys.publicKey, 60_000)
  const socket = tlsConnect({
    socket: await introduced(),
    cert: chain,
    key: keys.privateKey.reveal(),
    ca: trustBundle,
    servername: podServerName(values.expect, trustDomain),
  })
  socket.on('error', () => undefined)
  await once(socket, 'secureConnect')
  return socket
}

/** Resolves with the first answers to so many streams. */
function answersOn(socket: TLSSocket, count: number): Promise<Map<number, number>> {
  const { promise, resolve } = Promise.withResolvers<Map<number, number>>()
  const answers = new Map<number, number>()
  const reader = new FrameReader({
    onData: () => undefined,
    onControl: (type, stream, payload) => {
      if (type === ANSWER) answers.set(stream, payload[0] ?? -1)
      if (answers.size === count) resolve(answers)
    },
  })
  socket.on('data', (bytes) => reader.feed(bytes))
  return promise
}

/** However it is cut off. */
function ended(socket: Socket): Promise<object> {
  const { promise, resolve } = Promise.withResolvers<object>()
  socket.once('close', () => resolve({ ended: true }))
  socket.resume()
  return promise
}

/** Writes again and again until it is cut off. */
async function flood(socket: TLSSocket, next: () => Buffer): Promise<object> {
  const over = ended(socket)
  while (!socket.destroyed) {
    if (socket.write(next())) continue
    const drained = once(socket, 'drain').catch(() => undefined) // its end is what we wait for
    await Promise.race([drained, over])
  }
  return over
}

const cases: Record<string, () => Promise<object>> = {
  async open() {
    const socket = await lane()
    const answered = answersOn(socket, authorities.length)
    for (const [i, authority] of authorities.entries()) socket.write(open(i + 1, authority))
    const reasons = [...(await answered)].map(([id, why]) => [authorities[id - 1], endings[why]?.closeReason])
    return { answers: Object.fromEntries(reasons) }
  },
  async malformed() {
    const socket = await lane()
    socket.write(Buffer.from('GET / HTTP/1.1\r\n\r\n'))
    return ended(socket)
  },
  async window() {
    const socket = await lane()
    const answered = answersOn(socket, 1)
    socket.write(open(1, authorities[0] ?? ''))
    await answered
    socket.write(frame(DATA, 1, Buffer.from('slow\n')))
    const block = frame(DATA, 1, Buffer.alloc(60_000))
    return flood(socket, () => block)
  },
  async flood() {
    const socket = await lane()
    let id = 0
    const next = () => Buffer.concat(Array.from({ length: 500 }, () => open(++id, authorities[0] ?? '')))
    return flood(socket, next)
  },
  /** The first bytes of a handshake, and no more. */
  async half() {
    const socket = await introduced()
    socket.write(Buffer.from([0x16, 3, 1, 2, 0, 1]))
    return ended(socket)
  },
  async silent() {
    return ended(await introduced())
  },
}

console.log(JSON.stringify(await cases[positionals[0] ?? '']?.()))
process.exit(0)
