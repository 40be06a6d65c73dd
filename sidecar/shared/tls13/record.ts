import { createHmac } from 'node:crypto'
import { nonceBytes, regionOf, tagBytes } from './aead.ts'

/** The one suite that we speak, which every TLS 1.3 implementation must know (RFC 8446, 9.1). AES-256 takes a third longer. */
export const cipherSuite = 'TLS_AES_128_GCM_SHA256'
const keyBytes = 16
export const headerBytes = 5
export const maxPlain = 16 * 1024
/** Of a record, beside the bytes that it carries: header, type and tag. */
export const overhead = headerBytes + 1 + tagBytes
/** Of a record, without its header. */
export const maxAfterHeader = maxPlain + 256
const version = 0x0303
/** In a row. They cost us work and bring nothing. */
export const maxEmpty = 32

export const contentTypes = { alert: 21, applicationData: 23 } as const
/** An alert's level, which says nothing (RFC 8446, 6), and its description. */
export const closeNotify = Uint8Array.of(1, 0)

/** What protects one direction of a connection. */
export interface TrafficKey {
  key: Uint8Array
  iv: Uint8Array
}

/** Keys of a direction from its traffic secret (RFC 8446, 7.3). */
export function trafficKeyOf(secret: Uint8Array): TrafficKey {
  return { key: expandLabel(secret, 'key', keyBytes), iv: expandLabel(secret, 'iv', nonceBytes) }
}

/** HKDF-Expand-Label without context (RFC 8446, 7.1), for what fits into one block of the hash. */
function expandLabel(secret: Uint8Array, name: string, length: number): Uint8Array {
  const label = Buffer.from(`tls13 ${name}`)
  const info = Buffer.concat([Buffer.from([0, length, label.length]), label, Buffer.from([0, 1])])
  // Not a view of a pool: thousands of idle connections would keep its pages.
  return Uint8Array.from(createHmac('sha256', secret).update(info).digest().subarray(0, length))
}

/** Where `putNonce` puts a nonce, for whichever connection of this thread is at it. */
export const nonce = regionOf(Buffer.allocUnsafeSlow(nonceBytes))
const perWord = 2 ** 32

type Words = readonly [number, number, number]

/** The nonce of a record (RFC 8446, 5.3): the direction's IV, with the record's number, which has 53 bits here, in its end. */
export function putNonce([first, second, third]: Words, number: number): void {
  const { bytes } = nonce
  bytes.writeUInt32BE(first, 0)
  bytes.writeUInt32BE((second ^ Math.floor(number / perWord)) >>> 0, 4)
  bytes.writeUInt32BE((third ^ (number % perWord)) >>> 0, 8)
}

export function wordsOf(iv: Uint8Array): Words {
  const view = new DataView(iv.buffer, iv.byteOffset, nonceBytes)
  return [view.getUint32(0), view.getUint32(4), view.getUint32(8)]
}

/** The nonces of one direction: none is used twice. */
export class Nonces {
  readonly #words: Words
  readonly #limit: number
  #count = 0

  /** `limit`: of records that one key may protect. */
  constructor(iv: Uint8Array, limit: number) {
    this.#words = wordsOf(iv)
    this.#limit = limit
  }

  /** Puts the next one into `nonce`; false when the key has protected as much as it may. */
  next(): boolean {
    if (this.#count >= this.#limit) return false
    putNonce(this.#words, this.#count++)
    return true
  }
}

/** `length`: of what comes after it. */
export function writeHeader(into: Buffer, at: number, length: number): void {
  into[at] = contentTypes.applicationData
  into[at + 1] = version >>> 8
  into[at + 2] = version & 0xff
  into[at + 3] = length >>> 8
  into[at + 4] = length & 0xff
}

/** Of what comes after the header; undefined where it is none of a protected record of TLS 1.3. */
export function lengthAfter(header: Buffer, at: number): number | undefined {
  const length = header.readUInt16BE(at + 3)
  const isSealed = header[at] === contentTypes.applicationData && header.readUInt16BE(at + 1) === version
  return isSealed && length <= maxAfterHeader && length > tagBytes ? length : undefined
}

/** Where the type is in what a record held: the last byte that is no padding; -1 where there is none. */
export function typeAt(inner: Buffer, from: number, end: number): number {
  let at = end - 1
  while (at >= from && inner[at] === 0) at--
  return at >= from ? at : -1
}
