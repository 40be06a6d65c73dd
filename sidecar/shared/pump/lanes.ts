import { regionOf } from '../tls13/aead.ts'
import {
  EAGAIN,
  EINTR,
  EPOLLERR,
  EPOLLHUP,
  EPOLLIN,
  EPOLLOUT,
  EPOLLPRI,
  EPOLLRDHUP,
  errno,
  MSG_MORE,
  makePipe,
  type Pipe,
  packetBytes,
  read,
  recv,
  recvFlags,
  SHUT_WR,
  send,
  sendFlags,
  shutdown,
  splice,
} from './libc.ts'
import { Unpaced } from './pacing.ts'
import { smooth, widen } from './send-buffer.ts'
import { TCP_CLOSE, tcpState } from './tcp.ts'
import { ENDED, opened, sealed, type TlsConnection, WANTS_READ } from './tls-connection.ts'

/** How often a full send buffer is looked at more closely: that costs two calls. */
const widenEvery = 16

/** Whether our FIN is on its way. */
export interface Ending {
  sent: boolean
}

export interface PortOptions {
  ending?: Ending
  mayUnpace?: boolean
}

/** What a descriptor is ready for, as edge-triggered epoll has told; a call that would block takes it back. */
export class Port {
  readonly fd: number
  /** Shared by all that stand for the same socket. */
  readonly ending: Ending
  readable = true
  writable = true
  /** The peer has ended or sent urgent data, or the connection broke: a short read may have left something. */
  hungUp = false
  failed = false
  /**
   * The peer's FIN is here, and so is all before it: a short read takes the last of it, and the empty one after it is no reset
   * (which EPOLLHUP or EPOLLERR would have told, as EPOLLPRI tells of urgent data, which cuts reads short).
   */
  isWhole = false
  /** Its path has been near, and is far now: what its congestion control knows of it is wrong for some seconds. */
  turnedFar = false
  #fulls = 0
  readonly #mayUnpace: boolean
  #unpaced: Unpaced | undefined
  #isWide = false

  /** `mayUnpace`: whoever it carries can do without it when the path turns bad, or `look`s at it. */
  constructor(fd: number, { ending = { sent: false }, mayUnpace = false }: PortOptions = {}) {
    this.fd = fd
    this.ending = ending
    this.#mayUnpace = mayUnpace
  }

  on(events: number): void {
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI)) this.hungUp = true
    if (events & EPOLLERR) this.failed = true
    if (events & EPOLLRDHUP) this.isWhole = (events & (EPOLLHUP | EPOLLERR | EPOLLPRI)) === 0
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) this.readable = true
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) this.writable = true
  }

  /** A write would block. */
  full(): void {
    this.writable = false
    if (this.#fulls === 0) this.unpace()
    else this.look()
    if (++this.#fulls % widenEvery !== 0) return
    if (this.#isWide) smooth(this.fd)
    else this.#isWide = widen(this.fd)
  }

  /** Takes a connection its pacing if the path is near. */
  unpace(): void {
    if (this.#mayUnpace) this.#unpaced ??= Unpaced.of(this.fd)
  }

  /** Gives a connection whose path has turned far its pacing back; to be called now and then. */
  look(): void {
    if (this.#unpaced?.check() !== false) return
    this.#unpaced = undefined
    this.turnedFar = true
  }

  /** Ends our direction by a FIN. */
  end(): void {
    this.ending.sent = true
    shutdown(this.fd, SHUT_WR)
  }

  /**
   * What it means that a read brought no bytes; `count` is what it returned. A connection's error is told once only:
   * where a write has met it, a reset reads as an end.
   */
  missed(count: number): 'nothing' | 'interrupted' | 'ended' | 'broke' {
    if (count === 0) {
      const isSure = this.ending.sent || this.isWhole
      return !isSure && tcpState(this.fd) === TCP_CLOSE ? 'broke' : 'ended'
    }
    if (errno() === EINTR) return 'interrupted'
    if (errno() !== EAGAIN) return 'broke'
    this.readable = false
    return 'nothing'
  }
}

/**
 * What became of a lane's turn: it waits for the kernel, has more to do at once, has passed its end on, or one of its
 * two sides broke.
 */
export type Turn = 'waiting' | 'more' | 'done' | 'source-broke' | 'target-broke'

/** One direction of a connection. */
export interface Lane {
  /** Passed on so far. */
  readonly bytes: number
  /** Moves what can be moved without waiting, up to a bound so that all lanes get their turns. */
  turn(): Turn
  /** Gives back what it borrowed. */
  close(): void
}

/** Of one lane in one turn. */
const turnBytes = 1024 * 1024
const pipeBytes = 512 * 1024
/** Taken at once: whole packets, as they are passed on. */
const takenBytes = Math.floor(pipeBytes / packetBytes) * packetBytes
/** What is taken at once from a fast sender for a reader that has just been too slow: it may wait long. */
const slowBytes = 64 * 1024
const scratchBytes = 64 * 1024
/** Where bytes are between two calls; what cannot be passed on at once is copied out of it. */
const scratch = Buffer.allocUnsafeSlow(scratchBytes)
const scratchRegion = regionOf(scratch)

/** Empty pipes, kept: the kernel bounds how many bytes of pipes a user may have. They live as long as the process. */
export class PipePool {
  readonly #idle: Pipe[] = []
  readonly #max: number
  readonly #onMade: (pipe: Pipe) => void
  #made = 0

  constructor(max: number, onMade: (pipe: Pipe) => void) {
    this.#max = max
    this.#onMade = onMade
  }

  take(): Pipe | undefined {
    const idle = this.#idle.pop()
    if (idle !== undefined || this.#made >= this.#max) return idle
    const pipe = makePipe(pipeBytes)
    if (pipe === undefined) return undefined
    this.#made++
    this.#onMade(pipe)
    return pipe
  }

  give(pipe: Pipe): void {
    this.#idle.push(pipe)
  }
}

/**
 * Blocks that nobody uses now. They are used again and again: V8 sees of a block its few bytes of handle only, and
 * would collect those of slow readers when there are tens of megabytes of them.
 */
const idleBlocks: Buffer[] = []
const maxIdleBlocks = 16

/** Bytes that were taken from the source and could not be passed on yet, 64 KiB and their sealing at most. */
export class Held {
  #block: Buffer | undefined
  #from = 0
  #to = 0

  get any(): boolean {
    return this.#block !== undefined
  }

  /** Copies, as the scratch serves the next lane. */
  keep(bytes: Buffer): void {
    const block = idleBlocks.pop() ?? Buffer.allocUnsafeSlow(sealed.length)
    bytes.copy(block)
    this.#block = block
    this.#from = 0
    this.#to = bytes.length
  }

  /** Offers them; `write` says how many it took, or a negative number when none. */
  pass(write: (bytes: Buffer) => number): number {
    const block = this.#block
    if (block === undefined) return 0
    const count = write(block.subarray(this.#from, this.#to))
    if (count > 0) this.#from += count
    if (this.#from === this.#to) this.drop()
    return count
  }

  drop(): void {
    if (this.#block !== undefined && idleBlocks.length < maxIdleBlocks) idleBlocks.push(this.#block)
    this.#block = undefined
  }
}

/** So many full reads in a row are bulk, and so many small ones are none any more. */
const bulkReads = 4
const smallReads = 64
const smallBytes = 4 * 1024
/** After so many pieces that were copied a connection is one that is kept for many requests. */
const keptPieces = 32

/** A socket to a socket: inside the kernel while there is bulk and a pipe to be had, else by copying. */
export class SpliceLane implements Lane {
  bytes = 0
  readonly #from: Port
  readonly #to: Port
  readonly #pipes: PipePool
  readonly #held = new Held()
  #pipe: Pipe | undefined
  #inPipe = 0
  #ended: boolean
  #ask = takenBytes
  #copies: boolean
  /** Reads in a row that were full while it copies, or small while it splices. */
  #odd = 0
  #pieces = 0

  /** `ended`: the source is at its end, and nothing but that is left to be passed on. */
  constructor(from: Port, to: Port, pipes: PipePool, ended: boolean, copies = false) {
    this.#from = from
    this.#to = to
    this.#pipes = pipes
    this.#ended = ended
    this.#copies = copies
  }

  /** `isLast`: the sockets are closed after it, so the end needs no telling. */
  turn(isLast = false): Turn {
    for (const until = this.bytes + turnBytes; this.bytes < until; ) {
      const empty = this.#pass()
      if (empty !== undefined) return empty
      if (this.#ended) {
        if (!isLast) this.#to.end()
        return 'done'
      }
      const taken = this.#take()
      if (taken !== undefined) return taken
    }
    return 'more'
  }

  close(): void {
    this.#held.drop()
    const pipe = this.#pipe
    this.#pipe = undefined
    if (pipe === undefined) return
    while (this.#inPipe > 0) {
      const count = read(pipe.read, scratch, scratchBytes)
      if (count <= 0) break
      this.#inPipe -= count
    }
    this.#pipes.give(pipe)
  }

  /** Passes on what was taken; undefined when none is left. */
  #pass(): Turn | undefined {
    const pipe = this.#pipe
    while (this.#held.any || this.#inPipe > 0) {
      const count =
        pipe === undefined
          ? this.#held.pass((bytes) => send(this.#to.fd, bytes, bytes.length, sendFlags))
          : splice(pipe.read, this.#to.fd, Math.min(packetBytes, this.#inPipe))
      if (count > 0) {
        this.bytes += count
        if (pipe !== undefined) this.#inPipe -= count
        continue
      }
      const failed = errno()
      if (failed === EINTR) continue
      if (failed !== EAGAIN) return 'target-broke'
      this.#to.full()
      this.#ask = slowBytes
      return 'waiting'
    }
    if (pipe !== undefined) this.#pipes.give(pipe)
    this.#pipe = undefined
    this.#ask = Math.min(takenBytes, this.#ask * 2)
    return undefined
  }

  /** Takes from the source; undefined when something was taken, or its end was seen. */
  #take(): Turn | undefined {
    const { fd } = this.#from
    if (!this.#from.readable || !this.#to.writable) return 'waiting'
    if (this.#copies) return this.#copy()
    const pipe = this.#pipes.take()
    if (pipe !== undefined) {
      const count = splice(fd, pipe.write, this.#ask)
      if (count > 0) {
        this.#pipe = pipe
        this.#inPipe = count
        this.#odd = count < smallBytes ? this.#odd + 1 : 0
        if (this.#odd >= smallReads) this.#change(true)
        return undefined
      }
      this.#pipes.give(pipe)
      if (count < 0 && errno() !== EAGAIN) return this.#missed(count)
      // splice(2) stops before urgent data for ever, and takes it for the end once that has come; recv gets past it
      // (it is lost, as for an app that never asks for it).
    }
    const count = recv(fd, scratch, slowBytes, recvFlags)
    if (count <= 0) return this.#missed(count)
    this.#held.keep(scratch.subarray(0, count))
    return undefined
  }

  /** What is small costs least this way: one call to read it, one to write it. */
  #copy(): Turn | undefined {
    const [from, to] = [this.#from, this.#to]
    const count = recv(from.fd, scratch, scratchBytes, recvFlags)
    if (count <= 0) return this.#missed(count)
    if (count < scratchBytes && !from.hungUp) from.readable = false
    this.#odd = count === scratchBytes ? this.#odd + 1 : 0
    if (this.#odd >= bulkReads) this.#change(false)
    if (++this.#pieces === keptPieces) to.unpace()
    // One packet for the last piece and the FIN. The next read tells whether it was the last.
    const flags = from.isWhole && count < scratchBytes ? sendFlags | MSG_MORE : sendFlags
    const sent = Math.max(0, send(to.fd, scratch, count, flags)) // a failure is met again by the rest
    this.bytes += sent
    if (sent < count) this.#held.keep(scratch.subarray(sent, count))
    return undefined
  }

  #change(copies: boolean): void {
    this.#copies = copies
    this.#odd = 0
  }

  #missed(count: number): Turn | undefined {
    const missed = this.#from.missed(count)
    this.#ended = missed === 'ended'
    return missed === 'broke' ? 'source-broke' : undefined
  }
}

/** A socket into a TLS connection. */
export class EncryptLane implements Lane {
  bytes = 0
  readonly #from: Port | undefined
  readonly #tls: TlsConnection
  readonly #to: Port
  /** Encrypted, and not taken by the socket yet. */
  readonly #held = new Held()
  #ended: boolean
  #isEndSealed = false

  /** Without a source there is nothing but the end to be passed on. */
  constructor(from: Port | undefined, tls: TlsConnection, to: Port) {
    this.#from = from
    this.#tls = tls
    this.#to = to
    this.#ended = from === undefined
  }

  turn(): Turn {
    for (const until = this.bytes + turnBytes; this.bytes < until; ) {
      if (!this.#to.writable) return 'waiting'
      if (this.#held.any) {
        const count = this.#held.pass((bytes) => send(this.#to.fd, bytes, bytes.length, sendFlags))
        const turn = count < 0 ? this.#failed() : undefined
        if (turn !== undefined) return turn
        continue
      }
      if (this.#isEndSealed) return 'done'
      const turn = this.#ended ? this.#end() : this.#take()
      if (turn !== undefined) return turn
    }
    return 'more'
  }

  close(): void {
    this.#held.drop()
  }

  #end(): Turn | undefined {
    this.#isEndSealed = true
    return this.#send(this.#tls.sealEnd())
  }

  #take(): Turn | undefined {
    const from = this.#from
    if (from === undefined || !from.readable) return 'waiting'
    const count = recv(from.fd, scratch, packetBytes, recvFlags)
    if (count > 0) {
      if (count < packetBytes && !from.hungUp) from.readable = false
      this.bytes += count
      return this.#send(this.#tls.seal(scratchRegion, count))
    }
    const missed = from.missed(count)
    this.#ended = missed === 'ended'
    return missed === 'broke' ? 'source-broke' : undefined
  }

  /** What was sealed. */
  #send(length: number): Turn | undefined {
    if (length < 0) return 'target-broke'
    const count = send(this.#to.fd, sealed, length, sendFlags)
    if (count === length) return undefined
    this.#held.keep(sealed.subarray(Math.max(0, count), length))
    return count < 0 ? this.#failed() : undefined
  }

  #failed(): Turn | undefined {
    if (errno() === EINTR) return undefined
    if (errno() !== EAGAIN) return 'target-broke'
    this.#to.full()
    return 'waiting'
  }
}

/** A TLS connection into a socket. */
export class DecryptLane implements Lane {
  bytes = 0
  readonly #tls: TlsConnection
  readonly #from: Port
  readonly #to: Port | undefined
  readonly #held = new Held()
  #ended = false

  /** Without a target only the end is waited for: that direction was over before. */
  constructor(tls: TlsConnection, from: Port, to: Port | undefined) {
    this.#tls = tls
    this.#from = from
    this.#to = to
  }

  turn(): Turn {
    for (const until = this.bytes + turnBytes; this.bytes < until; ) {
      const to = this.#to
      if (to?.writable === false) return 'waiting'
      if (this.#held.any && to !== undefined) {
        const count = this.#held.pass((bytes) => send(to.fd, bytes, bytes.length, sendFlags))
        if (count < 0) {
          const turn = this.#failed(to)
          if (turn !== undefined) return turn
        } else this.bytes += count
        continue
      }
      if (this.#ended) {
        to?.end()
        return 'done'
      }
      if (!this.#from.readable) return 'waiting'
      const turn = this.#take(to)
      if (turn !== undefined) return turn
    }
    return 'more'
  }

  close(): void {
    this.#held.drop()
  }

  #take(to: Port | undefined): Turn | undefined {
    const count = this.#tls.open()
    if (this.#tls.isDrained && !this.#from.hungUp) this.#from.readable = false
    if (count === WANTS_READ) {
      this.#from.readable = false
      return 'waiting'
    }
    if (count === ENDED) {
      this.#ended = true
      return undefined
    }
    if (count < 0 || to === undefined) return 'source-broke' // a breach, or bytes of a direction that is over
    return this.#send(to, count)
  }

  #send(to: Port, length: number): Turn | undefined {
    const count = send(to.fd, opened, length, sendFlags)
    if (count === length) {
      this.bytes += count
      return undefined
    }
    this.bytes += Math.max(0, count)
    this.#held.keep(opened.subarray(Math.max(0, count), length))
    return count < 0 ? this.#failed(to) : undefined
  }

  #failed(to: Port): Turn | undefined {
    if (errno() === EINTR) return undefined
    if (errno() !== EAGAIN) return 'target-broke'
    to.full()
    return 'waiting'
  }
}
