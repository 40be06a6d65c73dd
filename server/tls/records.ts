import { EdgeMeshError } from '#shared/errors.ts'
import { Aead, regionOf, tagBytes } from '#shared/tls13/aead.ts'
import {
  headerBytes,
  lengthAfter,
  maxEmpty,
  maxPlain,
  Nonces,
  nonce,
  overhead,
  type TrafficKey,
  typeAt,
  writeHeader,
} from '#shared/tls13/record.ts'

/** Records under one key: RFC 8446 (5.5) allows some 23 million of full size. A channel starts over before that. */
const maxRecords = 2 ** 24

/** One for the keys of all connections, which come and go with each record: thousands of idle ones keep their 16 bytes only. */
let aead: Aead | undefined

function broken(why: string): EdgeMeshError {
  return new EdgeMeshError('bad-message', `Cannot read the TLS record: ${why}.`)
}

/** One direction: its key, and how many records it has protected. */
class Direction {
  readonly #key: Uint8Array
  readonly #nonces: Nonces

  constructor({ key, iv }: TrafficKey, limit: number) {
    this.#key = key
    this.#nonces = new Nonces(iv, Math.min(limit, maxRecords))
  }

  /** What the next record is sealed or opened with, its nonce being in its place. */
  next(): Aead {
    if (!this.#nonces.next()) throw broken('its key has protected as much as it may')
    aead ??= new Aead()
    aead.setKey(regionOf(this.#key).address)
    return aead
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
    writeHeader(record, 0, record.length - headerBytes)
    record.set(plain, headerBytes)
    record[headerBytes + plain.length] = type
    const { address } = regionOf(record)
    const inner = address + headerBytes
    this.#direction.next().seal(nonce.address, address, headerBytes, inner, plain.length + 1, inner)
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
      const after = lengthAfter(rest, 0)
      if (after === undefined) throw broken('its header is not one of TLS 1.3')
      const end = headerBytes + after
      if (rest.length < end) break
      records.push(this.#record(rest.subarray(0, end)))
      rest = rest.subarray(end)
    }
    // A copy: a few bytes of a client that stops here must not keep alive all that came with them.
    this.#partial = rest.length === 0 ? undefined : Buffer.from(Uint8Array.from(rest).buffer)
    return records
  }

  #record(record: Buffer): OpenedRecord {
    const { address } = regionOf(record)
    const inner = Buffer.allocUnsafeSlow(record.length - headerBytes - tagBytes) // who keeps a few bytes of it keeps no pool
    const [from, to] = [address + headerBytes, regionOf(inner).address]
    if (!this.#direction.next().open(nonce.address, address, headerBytes, from, inner.length, to)) {
      inner.fill(0)
      throw broken('it was not made by the peer')
    }
    const end = typeAt(inner, 0, inner.length)
    const type = inner[end]
    if (type === undefined) throw broken('it has no type')
    if (inner.length > maxPlain + 1) throw broken('it is too long')
    this.#empty = end === 0 ? this.#empty + 1 : 0
    if (this.#empty > maxEmpty) throw broken('too many before it were empty')
    return { type, plain: inner.subarray(0, end) }
  }
}
