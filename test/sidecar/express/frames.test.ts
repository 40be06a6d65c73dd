import { describe, expect, it } from 'vitest'
import {
  ANSWER,
  CREDIT,
  DATA,
  FIN,
  FrameReader,
  GOAWAY,
  HELLO,
  headerBytes,
  maxPayload,
  OPEN,
  PING,
  PONG,
  RESET,
  writeHeader,
} from '../../../sidecar/express/frames.ts'
import { Seeded } from '../../server/seeded.ts'

interface Frame {
  type: number
  stream: number
  payload: string
}

/** What a reader makes of bytes; the parts of a DATA frame put together. */
function read(parts: readonly Buffer[]): { frames: Frame[]; good: boolean } {
  const frames: Frame[] = []
  let left = 0
  const reader = new FrameReader({
    onData: (stream, bytes) => {
      const last = frames.at(-1)
      if (left > 0 && last !== undefined) last.payload += bytes.toString('hex')
      else frames.push({ type: DATA, stream, payload: bytes.toString('hex') })
      left = 1
    },
    onControl: (type, stream, payload) => {
      left = 0
      frames.push({ type, stream, payload: payload.toString('hex') })
    },
  })
  const good = parts.every((part) => reader.feed(part))
  return { frames, good }
}

function write({ type, stream, payload }: Frame): Buffer {
  const body = Buffer.from(payload, 'hex')
  const bytes = Buffer.alloc(headerBytes + body.length)
  writeHeader(bytes, 0, type, body.length, stream)
  bytes.set(body, headerBytes)
  return bytes
}

/** Every type, with every length that it may have. */
const each: Frame[] = [
  { type: HELLO, stream: 0, payload: '01' },
  { type: OPEN, stream: 1, payload: '00010000 1f90 0a000001'.replaceAll(' ', '') },
  { type: OPEN, stream: 0xffff_ffff, payload: `00010000${'ab'.repeat(18)}` },
  { type: ANSWER, stream: 1, payload: '0000010000' },
  { type: DATA, stream: 0x0102_0304, payload: '00' },
  { type: CREDIT, stream: 256, payload: 'ffffffff' },
  { type: DATA, stream: 1, payload: 'ab'.repeat(300) },
  { type: FIN, stream: 1, payload: '' },
  { type: RESET, stream: 2, payload: '' },
  { type: GOAWAY, stream: 0, payload: '' },
  { type: PING, stream: 0, payload: '' },
  { type: PONG, stream: 0, payload: '' },
]
const wire = Buffer.concat(each.map(write))

describe('frames', () => {
  it('are read as they were written, all at once or byte by byte', () => {
    expect(read([wire])).toEqual({ frames: each, good: true })
    expect(read([...wire].map((byte) => Buffer.from([byte])))).toEqual({ frames: each, good: true })
  })

  it('are the same wherever the bytes are cut', () => {
    for (let cut = 0; cut <= wire.length; cut++)
      expect(read([wire.subarray(0, cut), wire.subarray(cut)])).toEqual({ frames: each, good: true })
  })

  it('of data hold as much as one may, and pass it on as it comes', () => {
    const frame = write({ type: DATA, stream: 1, payload: 'cd'.repeat(maxPayload) })
    const { frames, good } = read([frame.subarray(0, 100), frame.subarray(100), write(each[0] as Frame)])
    expect(good).toBe(true)
    expect(frames[0]?.payload.length).toBe(2 * maxPayload)
    expect(frames[1]).toEqual(each[0])
  })

  it.each([
    ['of a type that is not known', '0a00 0000 00000001'],
    ['of the last type that there could be', 'ff00 0000 00000001'],
    ['with something where nothing is', '0301 0001 00000001'],
    ['of data without any', '0300 0000 00000001'],
    ['of data with too much', '0300 fff9 00000001'],
    ['of data with as much as can be said', '0300 ffff 00000001'],
    ['HELLO without a version', '0000 0000 00000000'],
    ['HELLO that is too long', '0000 0002 00000000'],
    ['OPEN without an address', '0100 0004 00000001'],
    ['OPEN with half an address', '0100 000b 00000001'],
    ['OPEN that is too long', '0100 0017 00000001'],
    ['ANSWER that is too short', '0200 0004 00000001'],
    ['FIN with a payload', '0400 0001 00000001'],
    ['RESET with a payload', '0500 0001 00000001'],
    ['CREDIT of eight bytes', '0600 0008 00000001'],
    ['GOAWAY with a payload', '0700 0001 00000000'],
    ['PING with a payload', '0800 0008 00000000'],
    ['PONG with a payload', '0900 0008 00000000'],
  ])('are refused by their header: %s', (_title, hex) => {
    const header = Buffer.from(hex.replaceAll(' ', ''), 'hex')
    expect(header).toHaveLength(headerBytes)
    expect(read([wire, header])).toEqual({ frames: each, good: false })
    expect(read([wire, ...[...header].map((byte) => Buffer.from([byte]))])).toEqual({
      frames: each,
      good: false,
    })
  })

  it('of ten thousand random inputs make no exception, and the same of each however it is cut', () => {
    const random = new Seeded(20_261_125)
    let refused = 0
    for (let i = 0; i < 10_000; i++) {
      const bytes = random.bytes(1 + random.below(200))
      // Most begin well, and go on at random.
      if (i % 4 !== 0) bytes.set(write(random.pick(each.slice(0, 6))).subarray(0, bytes.length))
      const cut = random.below(bytes.length)
      const [whole, parts] = [read([bytes]), read([bytes.subarray(0, cut), bytes.subarray(cut)])]
      expect(parts).toEqual(whole)
      if (!whole.good) refused++
    }
    expect(refused).toBeGreaterThan(2_000)
    expect(refused).toBeLessThan(10_000)
  })
})
