import { once } from 'node:events'
import { createServer, type Socket } from 'node:net'
import { connect as connectTls } from 'node:tls'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { EdgeMeshError } from '../../sidecar/shared/errors.ts'
import { serverNameOf } from '../../sidecar/shared/identity.ts'
import { tlsFloor } from '../../sidecar/shared/tls.ts'
import {
  type ClientMessage,
  closeCodes,
  controlPath,
  controlProtocol,
  decodeAddress,
  decodeClientMessage,
  maxClientFrame,
  observedPath,
} from '../../sidecar/shared/wire.ts'
import { receive } from '../sidecar/shared/tcp.ts'
import { requestFor, TestClient } from './client.ts'
import { identityFor, pod, TestServer, trustDomain } from './harness.ts'
import { connectTo, readStatus, upgradeRequest } from './http.ts'
import { Seeded } from './seeded.ts'

const [alice, bob] = [pod('alice'), pod('bob')]
/** Hostile ones: each may open so many channels only. */
const crowd = ['mallory', 'trudy', 'eve'].map(pod)
/** One whose deadlines are over soon, and one whose deadlines no test lives to see. */
let hasty: TestServer
let patient: TestServer
let clientHello: Buffer
const opened: Socket[] = []

beforeAll(async () => {
  const pods = [alice, bob, ...crowd]
  hasty = await TestServer.start({ pods, deadlines: { firstBytesMs: 100, handshakeMs: 100 } })
  patient = await TestServer.start({ pods, deadlines: { firstBytesMs: 600_000, handshakeMs: 600_000 } })
  clientHello = await captureClientHello()
})
afterEach(async () => {
  for (const socket of opened.splice(0)) socket.destroy()
  await Promise.all([hasty.untilQuiet(), patient.untilQuiet()])
})
afterAll(async () => {
  await Promise.all([hasty.close(), patient.close()])
})

/** The first bytes of a real TLS client. */
async function captureClientHello(): Promise<Buffer> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  const port = typeof address === 'object' && address !== null ? address.port : 0
  const client = connectTls({ ...tlsFloor, port, host: '127.0.0.1', servername: serverNameOf(trustDomain) })
  client.on('error', () => client.destroy())
  const [socket] = (await once(server, 'connection')) as [Socket]
  const [bytes] = (await once(socket, 'data')) as [Buffer]
  socket.destroy()
  server.close()
  return bytes
}

async function open(server: TestServer): Promise<Socket> {
  const socket = await connectTo(server.port)
  opened.push(socket)
  return socket
}

/** Sends all of it and the FIN; resolves when the server has closed the connection. */
async function throwAt(server: TestServer, bytes: Buffer): Promise<void> {
  const socket = await connectTo(server.port)
  const closed = socket.closed ? Promise.resolve() : new Promise((done) => socket.once('close', done))
  socket.resume()
  socket.end(bytes)
  await closed
}

/** So many at a time; the rest waits. */
async function inParallel<T>(
  width: number,
  items: readonly T[],
  work: (item: T) => Promise<void>,
): Promise<void> {
  let next = 0
  const worker = async () => {
    while (next < items.length) await work(items[next++] as T)
  }
  await Promise.all(Array.from({ length: width }, worker))
}

/** A pod can do all that it came for. */
async function expectWorking(server: TestServer): Promise<void> {
  const [a, b] = [await TestClient.join(server, alice), await TestClient.join(server, bob)]
  a.send({ type: 'relay', id: 1, podUid: bob.uid })
  const [{ ticket }, incoming] = await Promise.all([a.next('ticket'), b.next('incoming')])
  const [dialer, acceptor] = [await open(server), await open(server)]
  dialer.write(upgradeRequest(ticket))
  acceptor.write(upgradeRequest(incoming.ticket))
  expect(await Promise.all([readStatus(dialer), readStatus(acceptor)])).toEqual([101, 101])
  dialer.end('hello')
  expect(String((await receive(acceptor)).bytes)).toBe('hello')
  await Promise.all([a.close(), b.close()])
}

describe('a connection that keeps the server waiting is ended', () => {
  const partial: [string, () => Buffer | string][] = [
    ['that says nothing', () => ''],
    ['with one byte of a request', () => 'G'],
    ['with half a request', () => 'GET /relay HTTP/1.1\r\nHost: x\r\nUpgr'],
    ['with one byte of a handshake', () => clientHello.subarray(0, 1)],
    ['with half a handshake', () => clientHello.subarray(0, 200)],
    ['with all but the answer to a handshake', () => clientHello],
    [
      'with a request whose body does not come',
      () => 'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx',
    ],
  ]
  it.each(partial)('%s', async (_what, bytes) => {
    const socket = await open(hasty)
    socket.write(bytes())
    await once(socket.resume(), 'end')
  })

  it('that sends its request byte by byte', async () => {
    const socket = await open(hasty)
    const ended = receive(socket) // by a reset, where more came after the end
    const drip = setInterval(() => socket.writable && socket.write('X-A: b\r\n'), 10)
    socket.write('GET /relay HTTP/1.1\r\n')
    await ended.finally(() => clearInterval(drip))
  })

  it.each([
    ['with no request in its TLS', ''],
    ['with half a request in its TLS', 'GET /control HTTP/1.1\r\nHo'],
    ['that stays after it was told that there is nothing', requestInTls({ path: '/relay' })],
    ['that stays after it asked for another protocol', requestInTls({ protocol: 'edgemesh.v9' })],
    ['that stays after its key was refused', requestInTls({ key: 'x' })],
  ])('%s', async (_what, text) => {
    const socket = connectTls({
      ...tlsFloor,
      port: hasty.port,
      host: '127.0.0.1',
      ca: hasty.authority.trustBundle,
      servername: serverNameOf(trustDomain),
      socket: await open(hasty),
    })
    socket.on('error', () => socket.destroy())
    await once(socket, 'secureConnect')
    if (text !== '') socket.write(text)
    socket.resume()
    await hasty.untilQuiet()
  })

  it.each([
    ['that there is nothing', upgradeRequest('x', { path: '/' })],
    ['where it comes from', `GET ${observedPath} HTTP/1.1\r\nHost: x\r\n\r\n`],
  ])('that stays after it was told %s, in the clear', async (_what, text) => {
    const socket = await open(hasty)
    socket.write(text)
    socket.resume()
    await hasty.untilQuiet()
  })
})

function requestInTls({ path = controlPath, protocol = controlProtocol, key = 'A'.repeat(22) }): string {
  const headers = `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}==\r\nSec-WebSocket-Protocol: ${protocol}`
  return `GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n${headers}\r\n\r\n`
}

describe('who asks where it comes from', () => {
  it('is told, as often as it asks', async () => {
    const socket = await open(patient)
    for (let i = 0; i < 2; i++) {
      socket.write(`GET ${observedPath} HTTP/1.1\r\nHost: x\r\n\r\n`)
      const [answer] = (await once(socket, 'data')) as [Buffer]
      const body = String(answer).split('\r\n\r\n')[1] ?? ''
      expect(decodeAddress(body)).toEqual({ address: '127.0.0.1', port: socket.localPort })
    }
    socket.end()
  })
})

describe('a request in TLS', () => {
  it.each([
    ['for the relay', { path: '/relay' }, 404],
    ['without our protocol', { protocol: 'edgemesh.v9' }, 404],
    ['without a proper key', { key: 'x' }, 400],
    ['for the control channel', {}, 101],
  ])('%s is answered', async (_what, how, status) => {
    const socket = connectTls({
      ...tlsFloor,
      port: patient.port,
      host: '127.0.0.1',
      ca: patient.authority.trustBundle,
      servername: serverNameOf(trustDomain),
    })
    opened.push(socket)
    await once(socket, 'secureConnect')
    socket.write(requestInTls(how))
    expect(await readStatus(socket)).toBe(status)
  })

  it('must come by TLS 1.3', async () => {
    const socket = connectTls({
      maxVersion: 'TLSv1.2',
      port: patient.port,
      host: '127.0.0.1',
      ca: patient.authority.trustBundle,
      servername: serverNameOf(trustDomain),
    })
    const [error] = await once(socket, 'error')
    expect(error.code).toBe('ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION')
  })
})

describe('the port', () => {
  it('takes a handshake or a request in pieces', async () => {
    const tickets = patient.relay.issue(identityFor(alice), identityFor(bob))
    const [dialer, acceptor] = [await open(patient), await open(patient)]
    for (const byte of upgradeRequest(tickets.dialer)) dialer.write(byte)
    acceptor.write(upgradeRequest(tickets.acceptor))
    expect(await Promise.all([readStatus(dialer), readStatus(acceptor)])).toEqual([101, 101])
  })

  it('survives 10,000 random blobs', async () => {
    const random = new Seeded(1)
    const starts = ['', '\x16', '\x16\x03\x01', 'GET ', 'GET /relay HTTP/1.1\r\n', 'PRI * HTTP/2.0\r\n\r\n']
    const blobs = Array.from({ length: 10_000 }, () =>
      Buffer.concat([Buffer.from(random.pick(starts), 'latin1'), random.bytes(random.below(200))]),
    )
    await inParallel(64, blobs, (blob) => throwAt(patient, blob))
    await patient.untilQuiet()
    await expectWorking(patient)
  })

  it('survives an upgrade request and a handshake that break off anywhere', async () => {
    const request = Buffer.from(upgradeRequest(`test.${'A'.repeat(43)}`))
    const truncations = [request, clientHello].flatMap((whole) =>
      Array.from({ length: whole.length + 1 }, (_, i) => whole.subarray(0, i)),
    )
    await inParallel(64, truncations, (bytes) => throwAt(patient, bytes))
    await patient.untilQuiet()
    await expectWorking(patient)
  })

  it('survives requests and handshakes with bytes changed, and resets', async () => {
    const random = new Seeded(2)
    const request = Buffer.from(upgradeRequest(`test.${'A'.repeat(43)}`))
    const mutants = Array.from({ length: 1_000 }, () => {
      const mutant = Buffer.from(random.pick([request, clientHello]))
      for (let i = 1 + random.below(4); i > 0; i--) mutant[random.below(mutant.length)] = random.below(256)
      return mutant
    })
    await inParallel(64, mutants, (bytes) => throwAt(patient, bytes))
    await inParallel(64, mutants.slice(0, 200), async (bytes) => {
      const socket = await connectTo(patient.port)
      socket.write(bytes, () => socket.resetAndDestroy())
      await once(socket, 'close')
    })
    await patient.untilQuiet()
    await expectWorking(patient)
  })
})

describe('a server that is closed', () => {
  it('leaves no connection behind, whatever its state', async () => {
    const server = await TestServer.start({ pods: [alice] })
    const [silent, half] = [await open(server), await open(server)]
    half.write(clientHello.subarray(0, 100))
    const client = await TestClient.join(server, alice)
    const { dialer } = server.relay.issue(identityFor(alice), identityFor(bob))
    const waiting = await server.spend(async () => {
      const socket = await open(server)
      socket.write(upgradeRequest(dialer))
      return socket
    })
    const endings = [silent, half].map(receive)
    const status = readStatus(waiting)
    await server.close()
    expect(await client.ending()).toMatchObject({ close: closeCodes.goingAway })
    expect(await status).toBe(504)
    await Promise.all(endings)
    await server.untilQuiet()
  })
})

const messages = async (server: TestServer): Promise<ClientMessage[]> => {
  const request = await requestFor(server, alice)
  return [
    {
      type: 'hello',
      v: 1,
      request,
      podIPs: ['10.0.0.1', 'fd00::1'],
      resume: { epoch: 'e', version: 7 },
      subscriptions: ['default/echo'],
    },
    { type: 'renew', request },
    { type: 'subscribe', service: 'shop/echo' },
    { type: 'unsubscribe', service: 'shop/echo' },
    { type: 'relay', id: 1, podUid: bob.uid },
    { type: 'bye' },
  ]
}

/** What a field may be changed to. */
const oddities = [
  null,
  true,
  0,
  -1,
  1.5,
  1e300,
  '',
  'x',
  '__proto__',
  '\u0000',
  '\ud800',
  'A'.repeat(1_000),
  [],
  {},
  [[]],
  { type: 'hello' },
  { length: 9 },
  { toString: 1 },
] as const

const oddKeys = ['', 'x', 'type', '__proto__', 'constructor', 'toString', '0', 'length'] as const

/** A copy with one thing changed, removed or added, anywhere in it. */
function mutate(random: Seeded, value: unknown): unknown {
  if (typeof value !== 'object' || value === null || random.below(4) === 0) return random.pick(oddities)
  const entries = Object.entries(value)
  const at = random.below(entries.length + 1)
  const how = random.below(5)
  if (how === 0) entries.splice(at, 1)
  else if (how === 1 || at === entries.length) entries.push([random.pick(oddKeys), random.pick(oddities)])
  else entries[at] = [entries[at]?.[0] ?? '', mutate(random, entries[at]?.[1])]
  return Array.isArray(value) ? entries.map(([, v]) => v) : Object.fromEntries(entries)
}

/** Its text with a few characters changed. */
function scratch(random: Seeded, text: string): string {
  const bytes = Buffer.from(text)
  for (let i = 1 + random.below(3); i > 0; i--) bytes[random.below(bytes.length)] = 32 + random.below(95)
  return bytes
    .subarray(0, random.below(4) === 0 ? random.below(bytes.length) : bytes.length)
    .toString('latin1')
}

const mutantOf = (random: Seeded, message: ClientMessage): string =>
  random.below(2) === 0 ? JSON.stringify(mutate(random, message)) : scratch(random, JSON.stringify(message))

describe('many clients at once', () => {
  it('that stay in the middle of their handshake keep nobody else waiting', async () => {
    const stuck = await Promise.all(Array.from({ length: 300 }, () => open(patient)))
    // One half has said half of its hello, the other never answers the server's.
    stuck.forEach((socket, i) => {
      socket.write(i % 2 === 0 ? clientHello : clientHello.subarray(0, 200))
    })
    await once(stuck[298] as Socket, 'data')
    await expectWorking(patient)
    for (const socket of stuck) expect(socket.readyState).toBe('open')
  })

  it('are all welcomed, and told what they follow', async () => {
    const clients = await Promise.all(Array.from({ length: 100 }, () => TestClient.open(patient)))
    await Promise.all(clients.map((client, i) => client.hello(patient, i % 2 === 0 ? alice : bob)))
    await Promise.all(clients.map((client) => client.next('welcome')))
    await Promise.all(clients.map((client) => client.close()))
  })
})

describe('messages of a client that is broken or hostile', () => {
  it('are read or refused, 10,000 of them, and what is read fits', async () => {
    const random = new Seeded(3)
    const valid = await messages(patient)
    const count = { read: 0, refused: 0 }
    for (let i = 0; i < 10_000; i++) {
      const text = mutantOf(random, random.pick(valid))
      try {
        const message = decodeClientMessage(text)
        expect(decodeClientMessage(JSON.stringify(message))).toEqual(message)
        count.read++
      } catch (error) {
        if (!(error instanceof EdgeMeshError) || error.code !== 'bad-message') throw error
        count.refused++
      }
    }
    expect(count.read).toBeGreaterThan(500)
    expect(count.refused).toBeGreaterThan(5_000)
  })

  it('harm nobody else, sent over channels that were welcomed', async () => {
    const random = new Seeded(4)
    const valid = await messages(patient)
    const rounds = Array.from({ length: 150 }, () =>
      Array.from({ length: 10 }, () => {
        const kind = random.below(10)
        if (kind === 0) return random.bytes(random.below(300)).toString('latin1')
        if (kind === 1) return random.bytes(random.below(300))
        return mutantOf(random, random.pick(valid))
      }),
    )
    const witness = await TestClient.join(patient, bob)
    await inParallel(8, [...rounds.entries()], async ([i, frames]) => {
      const client = await TestClient.open(patient)
      await client.hello(patient, crowd[i % crowd.length] ?? alice)
      for (const frame of frames) client.socket.send(frame)
      client.socket.close()
      await client.closed
    })
    witness.send({ type: 'subscribe', service: 'shop/none' })
    await witness.next('endpoints')
    await witness.close()
    await patient.untilQuiet()
    expect([await patient.gauge('control_channels'), await patient.gauge('pods_present')]).toEqual([0, 0])
    await expectWorking(patient)
  })

  it('may be frames of any bytes', async () => {
    const random = new Seeded(5)
    const rounds = Array.from({ length: 100 }, () => random.bytes(1 + random.below(2_000)))
    await inParallel(8, rounds, async (bytes) => {
      const client = await TestClient.open(patient)
      const raw = (client.socket as unknown as { _socket: Socket })._socket
      raw.write(bytes)
      client.socket.close()
      raw.end()
      await client.closed
    })
    await patient.untilQuiet()
    await expectWorking(patient)
  })

  it('may be as large as a frame', async () => {
    const client = await TestClient.join(patient, alice)
    client.socket.send(`{"type":"subscribe","service":"shop/none"${' '.repeat(maxClientFrame - 42)}}`)
    await client.next('endpoints')
    await client.close()
  })
})
