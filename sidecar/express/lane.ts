import { Held, Port } from '#shared/pump/lanes.ts'
import { close, EAGAIN, EINTR, errno, send, sendFlags } from '#shared/pump/libc.ts'
import type { Loop, Task } from '#shared/pump/loop.ts'
import { setShared } from '#shared/pump/tcp.ts'
import {
  ENDED,
  opened,
  sealed,
  type TlsConnection,
  WANTS_READ,
  WANTS_WRITE,
} from '#shared/pump/tls-connection.ts'
import { type Region, regionOf } from '#shared/tls13/aead.ts'
import {
  DATA,
  FrameReader,
  GOAWAY,
  HELLO,
  headerBytes,
  maxPayload,
  OPEN,
  PING,
  PONG,
  version,
  writeHeader,
} from './frames.ts'
import type { Ledger } from './ledger.ts'
import type { LaneRoute } from './messages.ts'
import { Pulse } from './pulse.ts'
import { StreamTable } from './stream-table.ts'
import { wide, widthAfter } from './width.ts'

/** Frames of one round of the loop are sealed and sent together. */
const maxBatchBytes = wide.batchBytes
/** A DATA frame is begun with room for so many bytes. */
const minRoom = 4 * 1024
/** Of control frames, while the socket takes nothing: they are few for each stream. */
const maxHeldBytes = 1024 * 1024
/** In one turn, so that all lanes get theirs. */
const turnBytes = 256 * 1024
/** Batches that no lane needs now. */
const spare: Region[] = []
const maxSpare = 4
const none: Buffer = Buffer.alloc(0)

/** In ms, as all times here. */
const idleMs = 5 * 60_000
const handshakeMs = 10_000
/** Of one key no more than 2^24.5 records should be encrypted. */
const maxSealedBytes = 128 * 1024 ** 3
/** Numbers of streams have 32 bits. */
const maxStreamNumber = 2 ** 31
/** How long the peer of a lane that ends may take to read what was sent, in ms. */
const lingerMs = 2_000
/** In about a second: each costs more to answer than to ask. */
const maxFaults = 2_000

/** With a byte that sealing borrows. */
function newBatch(): Region {
  return regionOf(Buffer.allocUnsafeSlow(maxBatchBytes + 1))
}

/** A stream of a lane, as the lane sees it. */
export interface LaneUser extends Task {
  /** The bytes are valid during the call only. */
  onData(bytes: Buffer): void
  onControl(type: number, payload: Buffer): void
  onLaneOver(): void
}

export interface LaneOptions {
  id: number
  fd: number
  tls: TlsConnection
  route: LaneRoute
  /** Whose pod is at the other end; the acceptor learns it with `accept`. */
  peer: string
  isDialer: boolean
  loop: Loop
  ledger: Ledger
  /** Lanes with frames that wait for the end of this round. */
  dirty: Set<Lane>
  on: LaneEvents
}

export interface LaneEvents {
  /** The handshake is done, and the peer's certificate can be looked at. */
  named: (lane: Lane) => void
  /** Dialler: the acceptor has said that the lane may be used. */
  up: (lane: Lane) => void
  open: (lane: Lane, stream: number, payload: Buffer) => void
  /** No streams are to be opened on it any more. */
  retired: (lane: Lane) => void
  over: (lane: Lane, error: string) => void
}

/** One TLS connection that carries many streams. */
export class Lane implements Task {
  readonly id: number
  readonly route: LaneRoute
  readonly isDialer: boolean
  place = -1
  readonly users = new StreamTable<LaneUser>()
  peer: string
  readonly #options: LaneOptions
  readonly #port: Port
  readonly #reader: FrameReader
  #stage: 'handshake' | 'named' | 'open' | 'over' = 'handshake'
  #isRetired = false
  #isUp = false
  #faults = 0
  /** Once our direction is over: since when. */
  #endedMs: number | undefined
  #batch: Region | undefined
  #length = 0
  /** Sealed, and not taken by the socket yet; and what had to be sealed after it. */
  readonly #held = new Held()
  #more: Buffer | undefined
  readonly #waiting = new Set<Task>()
  /** Whose bytes went last: who fills the lane is the first to wait again. */
  #served: Task | undefined
  #lastStream = 0
  #sealedBytes = 0
  #width = wide
  /** At the last tick. */
  #ticked = { bytes: 0, ms: performance.now() }
  readonly #sinceMs = performance.now()
  #usedMs = this.#sinceMs
  readonly pulse = new Pulse(this.#sinceMs)

  constructor(options: LaneOptions) {
    this.#options = options
    this.id = options.id
    this.route = options.route
    this.peer = options.peer
    this.isDialer = options.isDialer
    // Whatever crosses the internet may turn bad, and then nothing does as well as BBR that was there before.
    this.#port = new Port(options.fd, { mayUnpace: options.route === 'direct' })
    this.#reader = new FrameReader({
      onData: (stream, bytes) => this.#userOf(stream)?.onData(bytes),
      onControl: (type, stream, payload) => this.#onControl(type, stream, payload),
    })
  }

  /** False when the kernel refuses. */
  start(): boolean {
    setShared(this.#options.fd, this.#width.unsentBytes)
    this.#options.loop.stir(this)
    return this.#options.loop.watch(this, this.#port)
  }

  get isOpen(): boolean {
    return this.#stage === 'open'
  }

  get isRetired(): boolean {
    return this.#isRetired
  }

  /** The peer's certificate, DER. */
  certificate(): Buffer {
    return this.#options.tls.peerCertificate()
  }

  /** The peer is who it should be: by `peer` the access lines call it. */
  accept(peer: string): void {
    if (this.#stage !== 'named') return
    if (this.#isRetired) {
      this.fail('it is retired')
      return
    }
    this.#stage = 'open'
    this.#ticked.ms = performance.now()
    this.peer = peer
    if (!this.isDialer) this.control(HELLO, 0, Buffer.from([version]))
    this.#options.loop.stir(this)
  }

  /** Sees to it that a peer that is alive is heard after that moment. */
  ask(sinceMs: number): void {
    if (!this.pulse.pingedSince(sinceMs)) this.#ping()
  }

  #ping(): void {
    this.pulse.pinged(performance.now())
    this.control(PING, 0)
  }

  /** A number for a stream that is opened here. */
  nextStream(): number {
    return ++this.#lastStream
  }

  /** New streams go elsewhere; the lane ends with its last one. */
  retire(): void {
    if (this.#isRetired || this.#stage === 'over') return
    this.#isRetired = true
    if (!this.isDialer) this.control(GOAWAY, 0)
    this.#options.on.retired(this)
  }

  /** Ends our direction once all is sent, and the lane once the peer has read it: a close might take that back. */
  end(nowMs: number): void {
    if (this.#stage !== 'open') this.fail('it is over')
    else if (this.#endedMs !== undefined) {
      if (nowMs - this.#endedMs > lingerMs) this.fail('it is over')
    } else if (!this.#isFull && this.#length === 0) {
      this.#endedMs = nowMs
      this.#port.end()
    }
  }

  /** The peer has asked for what it does not get; who does nothing else is cut off. */
  blame(): void {
    if (++this.#faults > maxFaults) this.fail('the peer asks for too much')
  }

  turn(): 'waiting' | 'more' | 'finished' {
    if (this.#stage === 'handshake') this.#handshake()
    if (this.#stage !== 'open') return 'waiting'
    if (this.#isFull && this.#port.writable) this.flush()
    for (let taken = 0; taken < turnBytes; ) {
      if (this.#stage !== 'open' || !this.#port.readable) return 'waiting'
      taken += this.#read()
    }
    return 'more'
  }

  /** Where a DATA frame's payload may be put; undefined while the socket takes no more, and then it stirs `task`. */
  reserve(task: Task, most: number): Buffer | undefined {
    const { batchBytes } = this.#width
    if (!this.#isFull && this.#length + headerBytes + minRoom > batchBytes) this.flush()
    if (this.#isFull || this.#stage !== 'open') {
      this.#waiting.add(task)
      return undefined
    }
    this.#served = task
    this.#batch ??= spare.pop() ?? newBatch()
    const from = this.#length + headerBytes
    return this.#batch.bytes.subarray(from, Math.min(batchBytes, from + Math.min(most, maxPayload)))
  }

  /** What was reserved last has so many bytes. */
  commit(stream: number, length: number): void {
    if (this.#batch === undefined) return
    writeHeader(this.#batch.bytes, this.#length, DATA, length, stream)
    this.#length += headerBytes + length
    this.#options.dirty.add(this)
  }

  /** Goes with the next batch, however much the socket takes. */
  control(type: number, stream: number, payload = none): void {
    if (this.#stage !== 'open' || this.#endedMs !== undefined) return
    if (this.#length + headerBytes + payload.length > maxBatchBytes) this.#seal()
    if ((this.#more?.length ?? 0) > maxHeldBytes) this.fail('the peer takes nothing')
    if (this.#stage !== 'open') return
    this.#batch ??= spare.pop() ?? newBatch()
    writeHeader(this.#batch.bytes, this.#length, type, payload.length, stream)
    payload.copy(this.#batch.bytes, this.#length + headerBytes)
    this.#length += headerBytes + payload.length
    this.#options.dirty.add(this)
  }

  /** Seals and sends what there is. */
  flush(): void {
    this.#options.dirty.delete(this)
    if (this.#stage !== 'open') return
    if (this.#isFull && this.#port.writable) this.#sendHeld()
    if (!this.#isFull && this.#length > 0) this.#seal()
    if (this.#isFull) return // the lane's turn goes on when the socket takes bytes again
    this.#stirWaiting()
  }

  /** In their order, but after all others who was served last. */
  #stirWaiting(): void {
    const served = this.#served
    if (served !== undefined && this.#waiting.delete(served)) this.#waiting.add(served)
    for (const task of this.#waiting) this.#options.loop.stir(task)
    this.#waiting.clear()
  }

  /** Gives a task of the lane's another turn. */
  stir(task: Task): void {
    this.#options.loop.stir(task)
  }

  /** Looks at its deadlines; `starved`: this thread itself has not run for a while. */
  tick(nowMs: number, starved: boolean): void {
    if (starved) this.pulse.heard(nowMs)
    if (this.#stage !== 'open') {
      if (nowMs - this.#sinceMs > handshakeMs) this.fail('the handshake takes too long')
      return
    }
    this.#faults = 0
    this.#setWidth(nowMs)
    this.#port.look()
    if (this.#port.turnedFar) this.retire() // BBR keeps the old path's round trip for 10 s; a new lane does not
    if (this.users.size > 0) this.#usedMs = nowMs
    if (this.pulse.isDead(nowMs)) this.fail('the peer is silent')
    else if (this.users.size === 0 && this.#isRetired) this.end(nowMs)
    else if (this.isDialer && nowMs - this.#usedMs > idleMs) this.retire()
    else if (this.#sealedBytes > maxSealedBytes || this.#lastStream > maxStreamNumber) this.retire()
    else if (this.isDialer && this.pulse.wantsPing(nowMs)) this.#ping()
  }

  fail(error: string): void {
    if (this.#stage === 'over') return
    this.#stage = 'over'
    const { loop, ledger, fd, tls, dirty, on } = this.#options
    dirty.delete(this)
    loop.rest(this)
    loop.unwatch(fd) // the main thread may not have closed its duplicate yet
    tls.free()
    ledger.disown(fd)
    close(fd)
    const users = this.users.clear()
    this.#waiting.clear()
    this.#held.drop()
    this.#more = undefined
    this.#giveBatch()
    on.over(this, error)
    for (const user of users) user.onLaneOver()
  }

  /** Streams take shorter turns, and the kernel keeps less, while the peer takes little. */
  #setWidth(nowMs: number): void {
    const sent = { bytes: this.#sealedBytes - this.#ticked.bytes, ms: nowMs - this.#ticked.ms }
    this.#ticked = { bytes: this.#sealedBytes, ms: nowMs }
    const width = widthAfter(this.#width, { ...sent, isFull: this.#isFull })
    if (width !== this.#width) setShared(this.#options.fd, width.unsentBytes)
    this.#width = width
  }

  #handshake(): void {
    const { tls, on } = this.#options
    const result = tls.handshake()
    if (result === 0) {
      this.#stage = 'named'
      on.named(this)
    } else if (result === WANTS_READ) this.#port.readable = false
    else if (result === WANTS_WRITE) this.#port.writable = false
    else this.fail(tls.failure())
  }

  /** Takes the frames of a batch together; how many bytes that were. */
  #read(): number {
    const { tls } = this.#options
    const length = tls.open()
    if (length === WANTS_READ || (tls.isDrained && !this.#port.hungUp)) this.#port.readable = false
    if (length > 0) {
      this.pulse.heard(performance.now())
      if (!this.#reader.feed(opened.subarray(0, length))) this.fail('the peer sends what is no frame')
    } else if (length !== WANTS_READ) this.fail(length === ENDED ? 'the connection ended' : tls.failure())
    return Math.max(0, length)
  }

  #onControl(type: number, stream: number, payload: Buffer): void {
    if (this.#stage !== 'open') return
    const { on } = this.#options
    if (type === PING) this.control(PONG, 0)
    else if (type === PONG) this.pulse.answered(performance.now())
    else if (type === HELLO && this.isDialer && !this.#isUp && payload[0] === version) {
      this.#isUp = true
      on.up(this)
    } else if (type === GOAWAY && this.isDialer) this.retire()
    else if (type === OPEN && !this.isDialer && stream > this.#lastStream) {
      this.#lastStream = stream
      if (this.#endedMs === undefined) on.open(this, stream, payload)
    } else if (type === HELLO || type === GOAWAY || type === OPEN) this.fail('the peer breaks the protocol')
    else this.#userOf(stream)?.onControl(type, payload)
  }

  /** Undefined for a stream that is over here: the peer may not know yet. */
  #userOf(stream: number): LaneUser | undefined {
    if (stream > this.#lastStream) this.fail('the peer breaks the protocol')
    return this.users.get(stream)
  }

  /** Encrypts the batch and offers it to the socket; what that does not take is held. */
  #seal(): void {
    const batch = this.#batch
    if (this.#length === 0 || batch === undefined) return
    const length = this.#options.tls.seal(batch, this.#length)
    this.#sealedBytes += Math.max(0, length)
    this.#giveBatch()
    if (length < 0) {
      this.fail('what is to be sent cannot be encrypted')
      return
    }
    if (this.#isFull) {
      this.#more = Buffer.concat([this.#more ?? none, sealed.subarray(0, length)])
      return
    }
    const count = Math.max(0, send(this.#options.fd, sealed, length, sendFlags))
    if (count === length) return
    this.#held.keep(sealed.subarray(count, length))
    this.#sendHeld()
  }

  get #isFull(): boolean {
    return this.#held.any || this.#more !== undefined
  }

  #sendHeld(): void {
    const { fd } = this.#options
    while (this.#isFull) {
      const more = this.#more
      let count: number
      if (this.#held.any || more === undefined)
        count = this.#held.pass((bytes) => send(fd, bytes, bytes.length, sendFlags))
      else {
        count = send(fd, more, more.length, sendFlags)
        if (count > 0) this.#more = count < more.length ? more.subarray(count) : undefined
      }
      if (count >= 0 || errno() === EINTR) continue
      if (errno() === EAGAIN) {
        this.#port.full()
        return
      }
      this.fail('the connection broke')
    }
  }

  #giveBatch(): void {
    if (this.#batch !== undefined && spare.length < maxSpare) spare.push(this.#batch)
    this.#batch = undefined
    this.#length = 0
  }
}
