import { regionOf } from '../tls13/aead.ts'
import { Joint } from './joint.ts'
import { DecryptLane, EncryptLane, type Ending, type PipePool, Port, type Turn } from './lanes.ts'
import { EAGAIN, EINTR, errno, send, sendFlags } from './libc.ts'
import type { Task } from './loop.ts'
import { nameBytes, type Report } from './messages.ts'
import {
  BROKEN,
  ENDED,
  opened,
  sealed,
  type TlsConnection,
  WANTS_READ,
  WANTS_WRITE,
} from './tls-connection.ts'

type Finished = Extract<Report, { type: 'finished' }>

/** A connection that was given to the pump. */
export interface Connection extends Pick<Task, 'turn'> {
  readonly id: number
  readonly ports: readonly Port[]
  outcome(): Finished
  /** Frees what is not a descriptor. */
  close(): void
}

/** Two sockets that are joined. */
export class JoinedSockets implements Connection {
  readonly id: number
  readonly ports: readonly Port[]
  readonly #joint: Joint

  constructor(
    order: { id: number; a: number; b: number; aEnded: boolean; bEnded: boolean },
    pipes: PipePool,
  ) {
    const [a, b] = [
      new Port(order.a, { ending: { sent: order.bEnded } }),
      new Port(order.b, { ending: { sent: order.aEnded } }),
    ]
    this.id = order.id
    this.ports = [a, b]
    this.#joint = new Joint(a, b, pipes, order)
  }

  turn(): 'waiting' | 'more' | 'finished' {
    return this.#joint.turn()
  }

  outcome(): Finished {
    const { aToB, bToA, broke } = this.#joint
    return { type: 'finished', id: this.id, aToB, bToA, ...(broke === undefined ? {} : { broke }) }
  }

  close(): void {
    this.#joint.close()
  }
}

const consent = 0x41
const agreement = 0x47

type Stage = 'handshake' | 'introducing' | 'awaiting-consent' | 'undecided' | 'awaiting-agreement' | 'open'

/**
 * A TLS connection that carries on what began elsewhere. The client names what, the server consents after it has
 * checked, and the client agrees in turn: from then on both know that each direction will end here.
 *
 *     client: handshake -> introducing -> awaiting-consent -> undecided -> open
 *     server: handshake -> introducing -> undecided -> awaiting-agreement -> open
 */
export class SideConnection implements Connection {
  readonly id: number
  readonly ports: Port[]
  readonly #tls: TlsConnection
  readonly #tlsPort: Port
  readonly #name: Uint8Array | undefined
  readonly #report: (report: Report) => void
  #stage: Stage = 'handshake'
  #toSay = Buffer.alloc(0)
  readonly #heard = Buffer.alloc(nameBytes)
  #heardBytes = 0
  #feed: { lane: EncryptLane; port: Port | undefined; turn: Turn } | undefined
  #drain: { lane: DecryptLane; port: Port | undefined; turn: Turn } | undefined
  /** Of the app's socket, which each direction has its own port for. */
  readonly #ending: Ending = { sent: false }
  #broke: 'a' | 'b' | undefined
  #error: string | undefined

  /** `name` as client; a server is told one. */
  constructor(
    id: number,
    fd: number,
    tls: TlsConnection,
    name: Uint8Array | undefined,
    report: (report: Report) => void,
  ) {
    this.id = id
    this.#tls = tls
    this.#tlsPort = new Port(fd)
    this.ports = [this.#tlsPort]
    this.#name = name
    this.#report = report
  }

  get isOpen(): boolean {
    return this.#stage === 'open'
  }

  accept(): void {
    if (this.#stage !== 'undecided') return
    this.#say([this.#name === undefined ? consent : agreement])
    this.#stage = this.#name === undefined ? 'awaiting-agreement' : 'open'
  }

  /** The port to be watched, if any. `ended`: our FIN to it was sent before. */
  feed(fd: number | undefined, ended: boolean): Port | undefined {
    if (ended) this.#ending.sent = true
    const port = fd === undefined ? undefined : new Port(fd, { ending: this.#ending })
    this.#feed = { lane: new EncryptLane(port, this.#tls, this.#tlsPort), port, turn: 'more' }
    return this.#watch(port)
  }

  drain(fd: number | undefined): Port | undefined {
    const port = fd === undefined ? undefined : new Port(fd, { ending: this.#ending })
    this.#drain = { lane: new DecryptLane(this.#tls, this.#tlsPort, port), port, turn: 'more' }
    return this.#watch(port)
  }

  fail(error: string): void {
    this.#broke ??= 'b'
    this.#error ??= error
  }

  turn(): 'waiting' | 'more' | 'finished' {
    if (this.#broke === undefined && this.#stage !== 'open') this.#establish()
    if (this.#broke === undefined && this.#toSay.length > 0) this.#speak()
    // Nothing may overtake what we have to say. Without a feed the socket is still read elsewhere, where a reset that a write
    // has met here would read as an end.
    const moves = this.#stage === 'open' && this.#toSay.length === 0 && this.#feed !== undefined
    if (this.#broke === undefined && moves) this.#move()
    if (this.#broke !== undefined) return 'finished'
    if (this.#feed?.turn === 'done' && this.#drain?.turn === 'done') return 'finished'
    if (!moves) return 'waiting' // for the peer, or for an order, which brings a turn
    return this.#feed?.turn === 'more' || this.#drain?.turn === 'more' ? 'more' : 'waiting'
  }

  outcome(): Finished {
    const [aToB, bToA] = [this.#feed?.lane.bytes ?? 0, this.#drain?.lane.bytes ?? 0]
    const broke = this.#broke === undefined ? {} : { broke: this.#broke }
    const error = this.#error === undefined ? {} : { error: this.#error }
    return { type: 'finished', id: this.id, aToB, bToA, ...broke, ...error }
  }

  close(): void {
    this.#feed?.lane.close()
    this.#drain?.lane.close()
    this.#tls.free()
  }

  #watch(port: Port | undefined): Port | undefined {
    if (port !== undefined) this.ports.push(port)
    return port
  }

  #establish(): void {
    if (this.#stage === 'handshake') {
      const result = this.#tls.handshake()
      if (result === 0) {
        if (this.#name !== undefined) this.#say(this.#name)
        this.#stage = this.#name === undefined ? 'introducing' : 'awaiting-consent'
      } else if (result === WANTS_READ) this.#tlsPort.readable = false
      else if (result === WANTS_WRITE) this.#tlsPort.writable = false
      else this.fail(this.#tls.failure())
    }
    if (this.#stage === 'introducing' && this.#hear(nameBytes)) {
      this.#stage = 'undecided'
      this.#reportNamed(this.#heard)
    }
    if (this.#stage === 'awaiting-consent' && this.#hear(1)) {
      if (this.#isHeard(consent)) {
        this.#stage = 'undecided'
        this.#reportNamed(this.#name ?? this.#heard)
      }
    }
    if (this.#stage === 'awaiting-agreement' && this.#hear(1)) {
      if (this.#isHeard(agreement)) {
        this.#stage = 'open'
        this.#report({ type: 'agreed', id: this.id })
      }
    }
  }

  #reportNamed(name: Uint8Array): void {
    const certificate = Uint8Array.from(this.#tls.peerCertificate())
    this.#report({ type: 'named', id: this.id, certificate, name: Uint8Array.from(name) })
  }

  #isHeard(expected: number): boolean {
    if (this.#heard[0] === expected) return true
    this.fail('the peer does not speak this protocol')
    return false
  }

  /** Whether so many bytes have come; they are then in `#heard`. */
  #hear(bytes: number): boolean {
    while (this.#heardBytes < bytes) {
      const count = this.#tls.open(bytes - this.#heardBytes)
      if (count === WANTS_READ) this.#tlsPort.readable = false
      if (count === BROKEN || count === ENDED)
        this.fail(count === ENDED ? 'the peer refuses' : this.#tls.failure())
      if (count <= 0) return false
      // There may be more than was asked for, of which no event will tell.
      this.#tlsPort.readable = true
      opened.copy(this.#heard, this.#heardBytes, 0, count)
      this.#heardBytes += count
    }
    this.#heardBytes = 0
    return true
  }

  #say(bytes: ArrayLike<number>): void {
    const plain = regionOf(Buffer.from([...Array.from(bytes), 0])) // and the byte that is borrowed
    const length = this.#tls.seal(plain, bytes.length)
    if (length < 0) this.fail('what is to be said cannot be encrypted')
    else this.#toSay = Buffer.concat([this.#toSay, sealed.subarray(0, length)])
  }

  #speak(): void {
    while (this.#toSay.length > 0) {
      const count = send(this.#tlsPort.fd, this.#toSay, this.#toSay.length, sendFlags)
      if (count > 0) this.#toSay = this.#toSay.subarray(count)
      else if (errno() === EAGAIN) {
        this.#tlsPort.writable = false
        return
      } else if (errno() !== EINTR) {
        this.fail('the connection broke')
        return
      }
    }
  }

  #move(): void {
    const [feed, drain] = [this.#feed, this.#drain]
    if (feed === undefined) return
    if (feed.turn !== 'done') {
      feed.turn = feed.lane.turn()
      if (feed.turn === 'source-broke') this.#broke = 'a'
      if (feed.turn === 'target-broke') this.#broke = 'b'
    }
    if (drain !== undefined && drain.turn !== 'done') {
      drain.turn = drain.lane.turn()
      if (drain.turn === 'source-broke') this.#broke = 'b'
      if (drain.turn === 'target-broke') this.#broke = 'a'
    }
    if (feed.turn === 'done' && drain?.turn === 'done') return
    // Where no lane reads a side, only epoll tells that it broke.
    if (this.#tlsPort.failed && (drain === undefined || drain.turn === 'done')) this.#broke ??= 'b'
    if ((feed.port?.failed || drain?.port?.failed) && feed.turn === 'done') this.#broke ??= 'a'
  }
}
