import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { flowKeyOf, socketAddress } from '../../../sidecar/express/address.ts'
import { headerBytes, writeHeader } from '../../../sidecar/express/frames.ts'
import type { Lane } from '../../../sidecar/express/lane.ts'
import { LaneHouse } from '../../../sidecar/express/lane-house.ts'
import { Ledger } from '../../../sidecar/express/ledger.ts'
import { type ExpressReport, endings, type LaneRoute } from '../../../sidecar/express/messages.ts'
import { Records } from '../../../sidecar/express/records.ts'
import { Roster, type Surroundings } from '../../../sidecar/express/surroundings.ts'
import { LaneTarget, TunnelledConnection } from '../../../sidecar/express/tunnelled.ts'
import { Windows } from '../../../sidecar/express/window.ts'
import { CertificateAuthority } from '../../../sidecar/shared/authority/certificate-authority.ts'
import { descriptorOf } from '../../../sidecar/shared/descriptor.ts'
import { podServerName } from '../../../sidecar/shared/identity.ts'
import { PipePool } from '../../../sidecar/shared/pump/lanes.ts'
import { accept, close, dup, epoll, eventfd, send, sendFlags } from '../../../sidecar/shared/pump/libc.ts'
import { Loop } from '../../../sidecar/shared/pump/loop.ts'
import { TlsContext } from '../../../sidecar/shared/pump/openssl.ts'
import { opened, sealed, TlsConnection } from '../../../sidecar/shared/pump/tls-connection.ts'
import { createKeyPair } from '../../../sidecar/shared/tls.ts'
import { regionOf } from '../../../sidecar/shared/tls13/aead.ts'
import { tcpPair } from '../shared/tcp.ts'

const trustDomain = 'cluster.local'
const patienceMs = 30_000

/** The certificates of pods, by uid, of one mesh. */
export async function contextsOf<T extends string>(...uids: T[]): Promise<Record<T, TlsContext>> {
  const folder = mkdtempSync(join(tmpdir(), 'lanes-'))
  const authority = await CertificateAuthority.open(folder, trustDomain)
  const made = uids.map(async (podUid) => {
    const keys = await createKeyPair()
    const identity = { trustDomain, namespace: 'default', serviceAccount: 'default', podUid }
    const { chain, trustBundle } = await authority.issue(identity, keys.publicKey, 600_000)
    return [podUid, new TlsContext({ key: keys.privateKey.reveal(), chain, trustBundle })] as const
  })
  const contexts = Object.fromEntries(await Promise.all(made)) as Record<T, TlsContext>
  rmSync(folder, { recursive: true })
  return contexts
}

/** The two ends of a TCP connection as descriptors that nothing else reads. */
export async function descriptors(): Promise<[number, number]> {
  const ends = await tcpPair()
  const fds = ends.map((socket) => {
    socket.pause()
    const fd = dup(descriptorOf(socket) ?? -1)
    socket.destroy()
    return fd
  })
  return [fds[0] ?? -1, fds[1] ?? -1]
}

/** An app that listens, and accepts only when it is told to. */
export class App {
  readonly #fd: number
  /** A sockaddr_in. */
  readonly address: Buffer
  readonly key: string

  private constructor(fd: number, address: Buffer) {
    this.#fd = fd
    this.address = address
    this.key = flowKeyOf(address, 4)
  }

  static async listen(): Promise<App> {
    const server = createServer() as Server & { _handle: { fd: number } }
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as { port: number }
    const fd = dup(server._handle.fd)
    server.close()
    return new App(fd, Buffer.from(socketAddress({ address: '127.0.0.1', port }) ?? Buffer.alloc(16)))
  }

  /** -1 while there is nobody. */
  accept(): number {
    return accept(this.#fd)
  }

  close(): void {
    close(this.#fd)
  }
}

/** A pod of the bench: its lanes, and what it has reported. */
export class Pod {
  readonly house: LaneHouse
  readonly around: Surroundings
  readonly overs: string[] = []
  readonly endings: string[] = []
  readonly punts: boolean[] = []
  /** Lanes whose peers are to be accepted. */
  readonly named: number[] = []
  readonly #opening = new Roster<TunnelledConnection>()
  #ups = 0
  #lastLane = 0

  constructor(loop: Loop, context: TlsContext, served: ReadonlyMap<string, string>) {
    const report = (told: ExpressReport) => this.#onReport(told)
    const [ledger, records] = [new Ledger(), new Records(report)]
    const pipes = new PipePool(0, () => undefined)
    this.around = { loop, pipes, ledger, records, windows: new Windows(), jointOptions: () => ({}) }
    this.house = new LaneHouse({ loop, context }, this.around, report, 100)
    this.house.serve(served)
    loop.before((now) => {
      for (const id of this.named.splice(0)) this.house.accept(id, 'peer')
      this.#opening.check(now)
      const waitMs = this.house.beforeWaiting(now)
      records.flush()
      return waitMs
    })
  }

  get ups(): number {
    return this.#ups
  }

  get open(): number {
    return this.around.ledger.open
  }

  /** Adds its end of a lane; as dialler where it is said whom it should meet. */
  addLane(fd: number, podUid?: string, route: LaneRoute = 'direct'): void {
    this.around.ledger.own(fd)
    const client = podUid && { podUid, serverName: podServerName(podUid, trustDomain) }
    this.house.add({ id: ++this.#lastLane, fd, route, ...(client && { client }) })
  }

  /** A captured connection that goes by the lane. */
  dial(fd: number, key: string, lane: Lane): void {
    this.around.ledger.own(fd)
    const about = { direction: 'outbound', destination: 'app', route: 'direct' } as const
    const target = new LaneTarget({ key: '', address: Buffer.alloc(0), about }, 'peer', key)
    const on = {
      punt: (_: unknown, punted: number, failed: boolean) => {
        this.punts.push(failed)
        this.around.ledger.disown(punted)
        close(punted)
      },
      end: () => undefined,
    }
    const connection = new TunnelledConnection(this.around, { fd, flowKey: key, target, lane }, on)
    this.#opening.add(connection)
    connection.start()
  }

  #onReport(told: ExpressReport): void {
    if (told.type === 'named') this.named.push(told.id)
    else if (told.type === 'up') this.#ups++
    else if (told.type === 'over') this.overs.push(told.error)
    else if (told.type === 'closed')
      for (let at = 1; at < told.figures.length; at += 6)
        this.endings.push(endings[told.figures[at] ?? 0]?.closeReason ?? '')
  }
}

class Reached extends Error {}

/** One loop for all pods of a test, run in this thread until something is the case. */
export class Bench {
  readonly loop = new Loop(epoll(), eventfd(), () => undefined)
  #until: () => boolean = () => true

  constructor() {
    this.loop.before(() => {
      if (this.#until()) throw new Reached()
      return 1
    })
  }

  run(until: () => boolean): void {
    const deadline = performance.now() + patienceMs
    this.#until = () => {
      if (performance.now() > deadline) throw new Error('it never came to that')
      return until()
    }
    try {
      this.loop.run()
    } catch (error) {
      if (!(error instanceof Reached)) throw error
    }
  }

  /** So many rounds more. */
  turn(rounds: number): void {
    let left = rounds
    this.run(() => left-- === 0)
  }
}

/** A peer with a certificate of the mesh that says what it likes. */
export class Peer {
  readonly fd: number
  readonly #tls: TlsConnection
  heard = Buffer.alloc(0)

  private constructor(fd: number, tls: TlsConnection) {
    this.fd = fd
    this.#tls = tls
  }

  /** Once its TLS connection stands; as client where it is said whom it dials. */
  static on(bench: Bench, fd: number, context: TlsContext, serverName?: string): Peer {
    const tls = new TlsConnection(context, fd, serverName && podServerName(serverName, trustDomain))
    bench.run(() => tls.handshake() === 0)
    return new Peer(fd, tls)
  }

  say(...frames: Buffer[]): void {
    const plain = Buffer.concat([...frames, Buffer.alloc(1)]) // the byte that sealing borrows
    const length = this.#tls.seal(regionOf(plain), plain.length - 1)
    if (send(this.fd, sealed, length, sendFlags) !== length) throw new Error('the socket is full')
  }

  /** Reads what there is; about so many bytes at most. */
  hear(most = Number.POSITIVE_INFINITY): Buffer {
    for (const until = this.heard.length + most; this.heard.length < until; ) {
      const count = this.#tls.open()
      if (count <= 0) break
      this.heard = Buffer.concat([this.heard, opened.subarray(0, count)])
    }
    return this.heard
  }

  close(): void {
    this.#tls.free()
    close(this.fd)
  }
}

export function frame(type: number, stream: number, payload: Buffer | number[] = []): Buffer {
  const bytes = Buffer.alloc(headerBytes + payload.length)
  writeHeader(bytes, 0, type, payload.length, stream)
  bytes.set(payload, headerBytes)
  return bytes
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}
