import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect as connectTcp, createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect, type TLSSocket } from 'node:tls'
import { BroadcastChannel } from 'node:worker_threads'
import { afterAll, afterEach, beforeEach, describe, expect, it } from 'vitest'
import { RecordSealer } from '../../../server/tls/records.ts'
import type { SealedStream } from '../../../server/tls/sealed-stream.ts'
import { Terminator, type TerminatorOptions } from '../../../server/tls/terminator.ts'
import { CertificateAuthority } from '../../../sidecar/shared/authority/certificate-authority.ts'
import { serverNameOf } from '../../../sidecar/shared/identity.ts'
import { tlsFloor } from '../../../sidecar/shared/tls.ts'
import { contentTypes, trafficKeyOf } from '../../../sidecar/shared/tls13/record.ts'
import { log, trustDomain } from '../harness.ts'

const folder = mkdtempSync(join(tmpdir(), 'edgemesh-terminator-'))
const worker = new URL('./mortal-worker.ts', import.meta.url)
const handshakeRecord = 22
const keyUpdate = Buffer.from([24, 0, 0, 1, 0])

/** A port that answers with what it is sent, in TLS of the terminator. */
class Echo {
  readonly failed: string[] = []
  readonly streams: SealedStream[] = []
  readonly terminator: Terminator
  readonly authority: CertificateAuthority
  /** Who comes is urgent. */
  urgent = false
  readonly #server: Server
  readonly #sockets: { destroy(): unknown }[] = []

  private constructor(authority: CertificateAuthority, options: Partial<TerminatorOptions>) {
    this.authority = authority
    this.terminator = new Terminator({
      handshakeMs: 600_000,
      replaceAfterMs: 10,
      log,
      worker,
      onSecured: (stream) => {
        this.streams.push(stream)
        stream.on('error', () => stream.destroy())
        stream.pipe(stream)
      },
      onFailed: (why) => this.failed.push(why),
      ...options,
    })
    this.#server = createServer((socket) => {
      this.#sockets.push(socket)
      socket.on('error', () => socket.destroy())
      socket.once('readable', () =>
        this.terminator.take(socket, socket.read() ?? Buffer.alloc(0), this.urgent),
      )
    })
  }

  static async start(options: Partial<TerminatorOptions> = {}): Promise<Echo> {
    const echo = new Echo(await CertificateAuthority.open(folder, trustDomain), options)
    const { key, certificate } = await echo.authority.issueServer(3_600_000)
    await echo.terminator.use({
      key: key.reveal(),
      certificate: certificate.chain,
      roots: certificate.trustBundle,
    })
    await once(echo.#server.listen(0, '127.0.0.1'), 'listening')
    return echo
  }

  /** Clients whose handshake has not begun. */
  get waiting(): number {
    return this.terminator.waiting
  }

  async connectPlain(): Promise<Socket> {
    const address = this.#server.address()
    if (typeof address !== 'object' || address === null) throw new Error('the server does not listen')
    const socket = connectTcp(address.port, '127.0.0.1')
    this.#sockets.push(socket)
    socket.on('error', () => socket.destroy())
    await once(socket, 'connect')
    return socket
  }

  /** The connection, what is below it, and the secret of the client's direction. */
  async connect(): Promise<{ tls: TLSSocket; raw: Socket; secret: Buffer }> {
    const raw = await this.connectPlain()
    const ca = this.authority.trustBundle
    const tls = connect({ ...tlsFloor, socket: raw, ca, servername: serverNameOf(trustDomain) })
    tls.on('error', () => tls.destroy())
    let secret = Buffer.alloc(0)
    tls.on('keylog', (line) => {
      const [label, , value = ''] = String(line).trim().split(' ')
      if (label === 'CLIENT_TRAFFIC_SECRET_0') secret = Buffer.from(value, 'hex')
    })
    await once(tls, 'secureConnect')
    return { tls, raw, secret }
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy()
    this.#server.close()
    await this.terminator.close()
  }
}

async function expectEcho(tls: TLSSocket, text = 'hello'): Promise<void> {
  tls.write(text)
  const [bytes] = (await once(tls, 'data')) as [Buffer]
  expect(String(bytes)).toBe(text)
}

afterAll(() => rmSync(folder, { recursive: true }))

let orders: BroadcastChannel
let echo: Echo
beforeEach(() => {
  orders = new BroadcastChannel('mortal-worker')
})
afterEach(async () => {
  orders.close()
  await echo.close()
})

describe('when the worker dies', () => {
  it('open connections go on, and new ones work once it is replaced', async () => {
    echo = await Echo.start()
    const { tls } = await echo.connect()
    await expectEcho(tls)
    orders.postMessage('die')
    await expect.poll(() => echo.terminator.available, { interval: 1 }).toBe(false)
    await expectEcho(tls, 'still here')
    await expect.poll(() => echo.terminator.available, { timeout: 60_000 }).toBe(true)
    await expectEcho((await echo.connect()).tls)
    await expectEcho(tls, 'and still')
  })

  it('who is in the middle of a handshake is let go', async () => {
    echo = await Echo.start()
    const socket = await echo.connectPlain()
    socket.write(Buffer.from([22, 3, 1, 0]))
    const ended = once(socket.resume(), 'close')
    // Its bytes have been answered once a whole handshake, which came later, is through.
    await expectEcho((await echo.connect()).tls)
    orders.postMessage('die')
    await ended
    expect(echo.failed).toEqual(['the worker died'])
  })
})

it('with a worker that cannot run, the terminator says that it is not available', async () => {
  echo = await Echo.start({ worker: new URL('./no-such-worker.ts', import.meta.url) })
  expect(echo.terminator.available).toBe(false)
})

describe('while the server is busy', () => {
  let isBusy = false
  beforeEach(async () => {
    isBusy = false
    echo = await Echo.start({ isBusy: () => isBusy, busyEveryMs: 600_000 })
    await echo.connect()
    isBusy = true
  })

  it('new handshakes wait until it is not', async () => {
    const begun = echo.connect()
    await expect.poll(() => echo.waiting).toBe(1)
    isBusy = false
    await expectEcho((await begun).tls)
  })

  it('what is urgent does not wait', async () => {
    const waiting = echo.connect()
    await expect.poll(() => echo.waiting).toBe(1)
    echo.urgent = true
    await expectEcho((await echo.connect()).tls)
    expect(echo.waiting).toBe(1)
    isBusy = false
    await waiting
  })

  it('who leaves before its handshake has begun is forgotten', async () => {
    const socket = await echo.connectPlain()
    socket.write(Buffer.from([22, 3, 1, 0]))
    await expect.poll(() => echo.waiting).toBe(1)
    socket.destroy()
    await expect.poll(() => echo.failed).toEqual(['the client ended'])
    expect(echo.waiting).toBe(0)
  })

  it('one begins now and then all the same', async () => {
    await echo.close()
    echo = await Echo.start({ isBusy: () => true })
    const all = await Promise.all([echo.connect(), echo.connect(), echo.connect()])
    for (const { tls } of all) await expectEcho(tls)
  })
})

it('a client that is too slow in its turn is let go', async () => {
  echo = await Echo.start({ handshakeMs: 50 })
  const socket = await echo.connectPlain()
  socket.write(Buffer.from([22, 3, 1, 0]))
  await once(socket.resume(), 'close')
  expect(echo.failed).toEqual(['the client is too slow'])
})

it('a client that sends without end instead of its hello is let go', async () => {
  echo = await Echo.start()
  const socket = await echo.connectPlain()
  // Records of a handshake message that is 130 kB long, as it says.
  const record = Buffer.concat([Buffer.from([22, 3, 1, 0x40, 0]), Buffer.alloc(0x4000)])
  record.set([1, 2, 0, 0], 5)
  const closed = once(socket.resume(), 'close')
  socket.write(Buffer.concat([record, record, record]))
  await closed
  expect(echo.failed).toHaveLength(1)
})

describe('after the handshake', () => {
  it.each([
    ['a key update', handshakeRecord, keyUpdate],
    ['a fatal alert', contentTypes.alert, Buffer.from([2, 40])],
    ['a record of a type that nobody knows', 99, Buffer.from('x')],
  ])('%s ends that connection, and no other', async (_what, type, bytes) => {
    echo = await Echo.start()
    const other = await echo.connect()
    const { raw, secret } = await echo.connect()
    raw.write(new RecordSealer(trafficKeyOf(secret)).seal(bytes, type))
    await once(raw, 'close')
    await expectEcho(other.tls)
  })

  it('nothing counts that comes after the closing alert', async () => {
    echo = await Echo.start()
    const { tls, raw, secret } = await echo.connect()
    tls.resume()
    await expect.poll(() => echo.streams.length, { interval: 1 }).toBe(1)
    const got: Buffer[] = []
    echo.streams[0]?.on('data', (bytes) => got.push(bytes))
    const sealer = new RecordSealer(trafficKeyOf(secret))
    const words = [
      sealer.seal(Buffer.from('before'), contentTypes.applicationData),
      sealer.seal(Buffer.from([1, 0]), contentTypes.alert),
      sealer.seal(Buffer.from('after'), contentTypes.applicationData),
    ]
    raw.write(Buffer.concat(words))
    await once(raw, 'close')
    expect(String(Buffer.concat(got))).toBe('before')
  })
})
