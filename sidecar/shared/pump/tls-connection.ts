import { Aead, type Region, regionOf, tagBytes } from '../tls13/aead.ts'
import {
  closeNotify,
  contentTypes,
  headerBytes,
  lengthAfter,
  maxAfterHeader,
  maxEmpty,
  maxPlain,
  Nonces,
  nonce,
  overhead,
  type TrafficKey,
  typeAt,
  writeHeader,
} from '../tls13/record.ts'
import { EAGAIN, EINTR, errno, packetBytes, recv, recvFlags } from './libc.ts'
import { alertText, type TlsContext, TlsHandshake, WANTS_READ, WANTS_WRITE } from './openssl.ts'

export { WANTS_READ, WANTS_WRITE }
/** What `open` and `seal` come to where it is no length: the peer's close_notify, a clean end of its direction; or a breach. */
export const ENDED = -3
export const BROKEN = -4

/** What is sealed at once at most, in bytes. */
export const maxSealed = 64 * 1024
/**
 * Only that no nonce comes again. What one key may protect is counted in bytes: lanes retire by that. A side connection is one
 * stream's, and there is no other way for it to go on by.
 */
const maxRecords = 2 ** 48
/**
 * Of encrypted bytes read at once: as many as are sent at once. With more, a part of the next packet's first record would be
 * read and have to be moved.
 */
const incomingBytes = sealedBytes(packetBytes)

/** What `seal` has put together last, and `open` has taken apart, for all connections of this thread. */
const sealedRegion = regionOf(Buffer.allocUnsafeSlow(sealedBytes(maxSealed)))
const openedRegion = regionOf(Buffer.allocUnsafeSlow(incomingBytes))
const incoming = regionOf(Buffer.allocUnsafeSlow(incomingBytes))
const alert = regionOf(Buffer.allocUnsafeSlow(closeNotify.length + 1))
export const sealed = sealedRegion.bytes
export const opened = openedRegion.bytes
const none = Buffer.alloc(0)
/** Blocks for the beginnings of records, one record long, that nobody needs now: V8 does not see how much memory they hold. */
const idleBlocks: Buffer[] = []
const maxIdleBlocks = 16

new Aead().free() // where Node does not export what this takes, the worker does not start

/** How long `length` bytes are once they are sealed. */
function sealedBytes(length: number): number {
  return length + Math.ceil(length / maxPlain) * overhead
}

/** One direction. */
class Direction {
  readonly aead = new Aead()
  readonly nonces: Nonces

  constructor({ key, iv }: TrafficKey) {
    this.aead.setKey(regionOf(key).address)
    this.nonces = new Nonces(iv, maxRecords)
  }
}

/**
 * One TLS 1.3 connection over a non-blocking socket, which stays the caller's. OpenSSL shakes hands; the records are ours
 * (RFC 8446, 5.2), as OpenSSL copies what it seals twice and what it opens once more.
 */
export class TlsConnection {
  readonly #fd: number
  #handshake: TlsHandshake | undefined
  #out: Direction | undefined
  #in: Direction | undefined
  #certificate: Buffer = none
  /** The beginning of a record that has not come whole, and how much of it. */
  #partial: Buffer | undefined
  #partialBytes = 0
  /** Opened, and not asked for yet. */
  #rest: Buffer = none
  #empty = 0
  #verdict: typeof ENDED | typeof BROKEN | undefined
  #failure = 'the connection broke'
  /** Whether there is nothing more to be had until the socket has more; what ended or broke the socket itself aside. */
  isDrained = false

  /** As client the peer's certificate must carry `serverName`; as server (undefined) any of the mesh is taken. */
  constructor(context: TlsContext, fd: number, serverName: string | undefined) {
    this.#fd = fd
    this.#handshake = new TlsHandshake(context, fd, serverName)
  }

  /** 0 when it is done. */
  handshake(): number {
    if (this.#handshake === undefined) return this.#in === undefined ? BROKEN : 0
    const result = this.#handshake.take()
    if (result !== 0) return result
    const done = this.#handshake.result()
    if (done === undefined) return BROKEN
    this.#in = new Direction(done.read)
    this.#out = new Direction(done.write)
    this.#certificate = done.certificate
    this.#handshake.free()
    this.#handshake = undefined
    return 0
  }

  /** The peer's, DER. */
  peerCertificate(): Buffer {
    return this.#certificate
  }

  /** Why it broke. A server that does not like our certificate says so when our handshake is over. */
  failure(): string {
    return this.#handshake?.failure() ?? this.#failure
  }

  /**
   * Encrypts the first `length` bytes of a region, `maxSealed` at most, into `sealed`, and returns how many it is now; negative
   * when it cannot. The byte after them is borrowed, and must be there.
   */
  seal(plain: Region, length: number): number {
    if (length > maxSealed || length >= plain.bytes.length) return BROKEN
    let to = 0
    for (let at = 0; at < length; at += maxPlain) {
      const count = this.#seal(plain, at, Math.min(maxPlain, length - at), contentTypes.applicationData, to)
      if (count < 0) return count
      to += count
    }
    return to
  }

  /** Ends our direction: seals a close_notify. */
  sealEnd(): number {
    alert.bytes.set(closeNotify)
    return this.#seal(alert, 0, closeNotify.length, contentTypes.alert, 0)
  }

  #seal({ bytes, address }: Region, at: number, length: number, type: number, to: number): number {
    if (this.#out?.nonces.next() !== true) return BROKEN
    const inner = length + 1
    writeHeader(sealed, to, inner + tagBytes)
    const header = sealedRegion.address + to
    const borrowed = bytes[at + length] ?? 0
    bytes[at + length] = type
    this.#out.aead.seal(nonce.address, header, headerBytes, address + at, inner, header + headerBytes)
    bytes[at + length] = borrowed
    return length + overhead
  }

  /** Reads what there is, `most` bytes at most, into `opened`, and returns how many; negative where there are none. */
  open(most = opened.length): number {
    if (this.#rest.length > 0) return this.#give(this.#rest.copy(opened), most)
    for (;;) {
      if (this.#verdict !== undefined) return this.#verdict
      if (this.#in === undefined) return BROKEN
      const have = this.#partialBytes
      const wanted = incomingBytes - have
      const count = recv(
        this.#fd,
        have === 0 ? incoming.bytes : incoming.bytes.subarray(have),
        wanted,
        recvFlags,
      )
      if (count < 0) {
        const why = errno()
        if (why === EINTR) continue
        return why === EAGAIN ? WANTS_READ : BROKEN
      }
      this.isDrained = count < wanted
      if (count === 0) return BROKEN // an end that the peer has not told of may be anyone's
      if (!this.#complete(have, count)) continue
      const length = this.#open(have + count)
      if (this.#verdict !== undefined) this.isDrained = false // it is to be asked for, and no event will tell
      if (length > 0) return this.#give(length, most)
    }
  }

  #give(length: number, most: number): number {
    this.#rest = none
    if (length <= most) return length
    this.#rest = Buffer.allocUnsafeSlow(length - most) // no view of a pool, of which it would keep all
    opened.copy(this.#rest, 0, most, length)
    this.isDrained = false
    return most
  }

  /** Puts what was kept before what was read, once that completes its record; else keeps that too. */
  #complete(have: number, count: number): boolean {
    const partial = this.#partial
    if (partial === undefined) return true
    const needed = have < headerBytes ? 0 : headerBytes + (lengthAfter(partial, 0) ?? 0)
    if (have + count >= needed) partial.copy(incoming.bytes, 0, 0, have)
    else this.#partialBytes += incoming.bytes.copy(partial, have, have, have + count)
    return have + count >= needed
  }

  /** Opens the records that are whole, and keeps the rest. */
  #open(end: number): number {
    const { bytes } = incoming
    let at = 0
    let length = 0
    while (end - at >= headerBytes && this.#verdict === undefined) {
      const after = lengthAfter(bytes, at)
      if (after === undefined) this.#verdict = BROKEN
      else if (end - at < headerBytes + after) break
      else {
        length += this.#record(at, after - tagBytes, length)
        at += headerBytes + after
      }
    }
    this.#keep(at, end)
    return length
  }

  /** What is there is kept for the next read: the beginning of one record. */
  #keep(at: number, end: number): void {
    if (at === end || this.#verdict !== undefined) {
      this.#drop()
      return
    }
    this.#partial ??= idleBlocks.pop() ?? Buffer.allocUnsafeSlow(headerBytes + maxAfterHeader)
    this.#partialBytes = incoming.bytes.copy(this.#partial, 0, at, end)
  }

  #drop(): void {
    if (this.#partial !== undefined && idleBlocks.length < maxIdleBlocks) idleBlocks.push(this.#partial)
    this.#partial = undefined
    this.#partialBytes = 0
  }

  /** Opens one to a place in `opened`; how many bytes it has brought. */
  #record(at: number, length: number, to: number): number {
    const header = incoming.address + at
    const isGenuine =
      this.#in?.nonces.next() === true &&
      this.#in.aead.open(
        nonce.address,
        header,
        headerBytes,
        header + headerBytes,
        length,
        openedRegion.address + to,
      )
    const end = isGenuine ? typeAt(opened, to, to + length) : -1
    const type = end < 0 ? undefined : opened[end]
    const count = end - to
    if (type === contentTypes.applicationData && length <= maxPlain + 1) {
      this.#empty = count === 0 ? this.#empty + 1 : 0
      if (this.#empty <= maxEmpty) return count
    }
    // Peers of ours ask for nothing after the handshake, and a new key or a certificate is not known to be what it says.
    this.#verdict = BROKEN
    if (type === contentTypes.alert && count === 2) this.#onAlert(opened[to + 1] ?? 0)
    return 0
  }

  #onAlert(description: number): void {
    if (description === closeNotify[1]) this.#verdict = ENDED
    else this.#failure = alertText(description)
  }

  free(): void {
    this.#handshake?.free()
    this.#handshake = undefined
    this.#drop()
    this.#in?.aead.free()
    this.#out?.aead.free()
    this.#in = undefined
    this.#out = undefined
  }
}
