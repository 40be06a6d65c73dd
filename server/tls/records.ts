import { createHmac } from 'node:crypto'
import { EdgeMeshError } from '#shared/errors.ts'
import { open, seal, tagBytes } from './aead.ts'

/** The one suite of the control port, which every TLS 1.3 client must know (RFC 8446, 9.1). */
export const cipherSuite = 'TLS_AES_128_GCM_SHA256'
const keyBytes = 16
const ivBytes = 12
const headerBytes = 5
export const maxPlain = 16 * 1024
/** Of a record, beside the bytes that it carries: header, type and tag. */
const overhead = headerBytes + 1 + tagBytes
const maxSealed = maxPlain + 256
const version = 0x0303
/** In a row. They cost us work and bring nothing. */
const maxEmpty = 32
/** Records under one key: RFC 8446 (5.5) allows some 23 million of full size. A channel starts over before that. */
const maxRecords = 2 ** 24

export const contentTypes = { alert: 21, applicationData: 23 } as const

/** What protects one direction of a connection. */
export interface TrafficKey {
  key: Uint8Array
  iv: Uint8Array
}

/** Keys of a direction from its traffic secret (RFC 8446, 7.3). */
export function trafficKeyOf(secret: Uint8Array): TrafficKey {
  return { key: expandLabel(secret, 'key', keyBytes), iv: expandLabel(secret, 'iv', ivBytes) }
}

/** HKDF-Expand-Label without context (RFC 8446, 7.1), for what fits into one block of the hash. */
function expandLabel(secret: Uint8Array, name: string, length: number): Uint8Array {
  const label = Buffer.from(`tls13 ${name}`)
  const info = Buffer.concat([Buffer.from([0, length, label.length]), label, Buffer.from([0, 1])])
  // Not a view of a pool: thousands of idle connections would keep its pages.
  return Uint8Array.from(createHmac('sha256', secret).update(info).digest().subarray(0, length))
}

function broken(why: string): EdgeMeshError {
  return new EdgeMeshError('bad-message', `Cannot read the TLS record: ${why}.`)
}

/** One direction: its key, and how many records it has protected. No number is used twice. */
class Direction {
  readonly #key: TrafficKey
  readonly #limit: number
  #records = 0

  constructor(key: TrafficKey, limit: number) {
    this.#key = key
    this.#limit = Math.min(limit, maxRecords)
  }

  get key(): Uint8Array {
    return this.#key.key
  }

  nextNonce(): Uint8Array {
    if (this.#records >= this.#limit) throw broken('its key has protected as much as it may')
    const nonce = Uint8Array.from(this.#key.iv)
    const view = new DataView(nonce.buffer)
    view.setUint32(ivBytes - 4, view.getUint32(ivBytes - 4) ^ this.#records) // counts to 2^24: no carry beyond
    this.#records++
    return nonce
  }
}

/** Makes records of bytes. */
export class RecordSealer {
  readonly #direction: Direction

  constructor(key: TrafficKey, limit = maxRecords) {
    this.#direction = new Direction(key, limit)
  }

  /** One record or more for bytes of one type. */
  seal(plain: Uint8Array, type: number): Buffer {
    const count = Math.max(1, Math.ceil(plain.length / maxPlain))
    const records = Buffer.allocUnsafe(plain.length + count * overhead)
    for (let at = 0, to = 0; to < records.length; at += maxPlain) {
      const part = plain.subarray(at, at + maxPlain)
      const record = records.subarray(to, to + part.length + overhead)
      this.#fill(record, part, type)
      to += record.length
    }
    return records
  }

  #fill(record: Buffer, plain: Uint8Array, type: number): void {
    writeHeader(record, record.length - headerBytes)
    record.set(plain, headerBytes)
    record[headerBytes + plain.length] = type
    const header = record.subarray(0, headerBytes)
    seal(this.#direction.key, this.#direction.nextNonce(), header, record.subarray(headerBytes))
  }
}

export interface OpenedRecord {
  type: number
  plain: Buffer
}

/** Takes what comes from the peer, in any pieces, and gives the records in it. */
export class RecordOpener {
  readonly #direction: Direction
  /** The beginning of a record that is not whole yet. */
  #partial: Buffer | undefined
  #empty = 0

  constructor(key: TrafficKey, limit = maxRecords) {
    this.#direction = new Direction(key, limit)
  }

  /** Whole records, in order. Throws where one is not what it must be: nothing after it may be used. */
  open(bytes: Buffer): OpenedRecord[] {
    let rest = this.#partial === undefined ? bytes : Buffer.concat([this.#partial, bytes])
    const records: OpenedRecord[] = []
    while (rest.length >= headerBytes) {
      const length = lengthIn(rest)
      const end = headerBytes + length
      if (rest.length < end) break
      records.push(this.#record(rest.subarray(0, headerBytes), rest.subarray(headerBytes, end)))
      rest = rest.subarray(end)
    }
    // A copy: a few bytes of a client that stops here must not keep alive all that came with them.
    this.#partial = rest.length === 0 ? undefined : Buffer.from(Uint8Array.from(rest).buffer)
    return records
  }

  #record(header: Buffer, sealed: Buffer): OpenedRecord {
    const inner = open(this.#direction.key, this.#direction.nextNonce(), header, sealed)
    if (inner === undefined) throw broken('it was not made by the peer')
    let end = inner.length - 1
    while (end >= 0 && inner[end] === 0) end-- // padding
    const type = inner[end]
    if (type === undefined) throw broken('it has no type')
    if (inner.length > maxPlain + 1) throw broken('it is too long')
    this.#empty = end === 0 ? this.#empty + 1 : 0
    if (this.#empty > maxEmpty) throw broken('too many before it were empty')
    return { type, plain: inner.subarray(0, end) }
  }
}

function writeHeader(into: Buffer, length: number): void {
  into.writeUInt8(contentTypes.applicationData, 0)
  into.writeUInt16BE(version, 1)
  into.writeUInt16BE(length, 3)
}

function lengthIn(header: Buffer): number {
  const length = header.readUInt16BE(3)
  const isSealed = header[0] === contentTypes.applicationData && header.readUInt16BE(1) === version
  if (!isSealed || length > maxSealed || length <= tagBytes) throw broken('its header is not one of TLS 1.3')
  return length
}
