/**
 * How streams share a lane: frames of an 8-byte header (type u8, 0 u8, length u16, stream u32; big endian) and a
 * payload. Streams are opened by the lane's dialler only, with rising numbers.
 */
export const headerBytes = 8
/** Of a DATA frame's payload. */
export const maxPayload = 64 * 1024 - headerBytes
const maxControl = 22

/** Acceptor: the lane may be used. Payload: version. */
export const HELLO = 0
/** Payload: how many bytes may be sent back (u32), and the destination's flow key (6 or 18 bytes). */
export const OPEN = 1
/** Payload: 0 once it is connected, else why not (u8, an index into `endings`); how many bytes may be sent (u32). */
export const ANSWER = 2
export const DATA = 3
/** The direction is over. */
export const FIN = 4
export const RESET = 5
/** So many bytes more may be sent, u32. */
export const CREDIT = 6
/** Opens no more streams. */
export const GOAWAY = 7
/** To be answered by PONG. */
export const PING = 8
export const PONG = 9

export const version = 1

/** What a payload's length may be, by type. */
const lengths: readonly (readonly number[] | undefined)[] = [
  [1],
  [10, 22],
  [5],
  undefined,
  [0],
  [0],
  [4],
  [0],
  [0],
  [0],
]

export function writeHeader(into: Buffer, at: number, type: number, length: number, stream: number): void {
  into[at] = type
  into[at + 1] = 0
  into[at + 2] = length >>> 8
  into[at + 3] = length
  into[at + 4] = stream >>> 24
  into[at + 5] = stream >>> 16
  into[at + 6] = stream >>> 8
  into[at + 7] = stream
}

export interface FrameHandler {
  /** A part of a DATA frame's payload; valid during the call only. */
  onData(stream: number, bytes: Buffer): void
  /** The payload is valid during the call only. */
  onControl(type: number, stream: number, payload: Buffer): void
}

/** Takes frames out of what was read, wherever that was cut. */
export class FrameReader {
  readonly #handler: FrameHandler
  readonly #header = Buffer.alloc(headerBytes + maxControl)
  #have = 0
  #stream = 0
  /** Of the DATA frame under way. */
  #left = 0

  constructor(handler: FrameHandler) {
    this.#handler = handler
  }

  /** False when it is no frame: there is no way to go on then. */
  feed(bytes: Buffer): boolean {
    for (let at = 0; at < bytes.length; ) {
      if (this.#left > 0) {
        const end = Math.min(bytes.length, at + this.#left)
        this.#left -= end - at
        this.#handler.onData(this.#stream, bytes.subarray(at, end))
        at = end
        continue
      }
      const wanted = this.#have < headerBytes ? headerBytes : headerBytes + this.#length
      const end = Math.min(bytes.length, at + wanted - this.#have)
      while (at < end) this.#header[this.#have++] = bytes[at++] ?? 0
      if (this.#have >= headerBytes && !this.#take()) return false
    }
    return true
  }

  get #length(): number {
    return this.#header.readUInt16BE(2)
  }

  /** Looks at a header, and at its payload once that is there; false when it is none. */
  #take(): boolean {
    const header = this.#header
    const [type = 0, zero] = header
    const length = this.#length
    if (type >= lengths.length || zero !== 0) return false
    const allowed = lengths[type]
    if (allowed === undefined ? length === 0 || length > maxPayload : !allowed.includes(length)) return false
    this.#stream = header.readUInt32BE(4)
    if (allowed === undefined) this.#left = length
    else if (this.#have < headerBytes + length) return true
    else this.#handler.onControl(type, this.#stream, header.subarray(headerBytes, headerBytes + length))
    this.#have = 0
    return true
  }
}
