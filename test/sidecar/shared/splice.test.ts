import { once } from 'node:events'
import type { Socket } from 'node:net'
import { pino } from 'pino'
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { joinByPump } from '../../../sidecar/shared/pump/join.ts'
import { Pump } from '../../../sidecar/shared/pump/pump.ts'
import { resetStream } from '../../../sidecar/shared/reset.ts'
import {
  type Splice,
  type SpliceOptions,
  type SpliceResult,
  spliceSockets,
} from '../../../sidecar/shared/splice.ts'
import { SeededBytes } from '../../conformance/traffic.ts'
import { receive, tcpPair } from './tcp.ts'

interface Spliced {
  /** What talks to `a`, and what talks to `b`. */
  left: Socket
  right: Socket
  a: Socket
  b: Socket
  result: Promise<SpliceResult>
  aborter: AbortController
}

const opened: Socket[] = []

const pump = new Pump(pino({ enabled: false }))
afterAll(() => pump.close())
const onBulk = (splice: Splice) => void joinByPump(splice, pump)
const anywhere = new SeededBytes(7)
/** What carries a splice; with the pump, from when on. */
const carriers: [string, () => SpliceOptions][] = [
  ['JavaScript', () => ({})],
  ['the pump from the first byte', () => ({ onBulk, bulkBytes: 1 })],
  [
    'the pump from somewhere in the middle',
    () => ({ onBulk, bulkBytes: 1 + (anywhere.block(4).readUInt32LE() % 200_000) }),
  ],
]
let options: SpliceOptions

async function spliced(): Promise<Spliced> {
  const [[left, a], [right, b]] = await Promise.all([tcpPair(), tcpPair()])
  opened.push(left, a, right, b)
  const aborter = new AbortController()
  return { left, right, a, b, aborter, result: spliceSockets(a, b, { ...options, signal: aborter.signal }) }
}

afterEach(() => {
  for (const socket of opened.splice(0)) socket.destroy()
})

const sides = [
  { from: 'left', to: 'right', side: 'a', way: 'aToB' },
  { from: 'right', to: 'left', side: 'b', way: 'bToA' },
] as const

describe.each(carriers)('a splice by %s', (_carrier, optionsOf) => {
  beforeEach(() => {
    options = optionsOf()
  })

  it('carries bytes both ways at once, exactly', async () => {
    const { left, right, result } = await spliced()
    const [up, down] = [new SeededBytes(1).block(3_000_001), new SeededBytes(2).block(2_000_003)]
    left.end(up)
    right.end(down)
    const [atRight, atLeft] = await Promise.all([receive(right), receive(left)])
    expect([atRight.by, atLeft.by]).toEqual(['fin', 'fin'])
    expect(atRight.bytes.equals(up)).toBe(true)
    expect(atLeft.bytes.equals(down)).toBe(true)
    expect(await result).toEqual({ aToB: up.length, bToA: down.length, reason: 'closed' })
  })

  it('carries what came before it began', async () => {
    const [[left, a], [right, b]] = await Promise.all([tcpPair(), tcpPair()])
    opened.push(left, a, right, b)
    a.unshift(Buffer.from('early '))
    left.end('bird')
    const result = spliceSockets(a, b, options)
    expect(String((await receive(right)).bytes)).toBe('early bird')
    right.end()
    expect(await result).toMatchObject({ reason: 'closed' })
  })

  it.each(sides)('passes a FIN of the $from on and keeps the other direction open', async (s) => {
    const splice = await spliced()
    const [from, to] = [splice[s.from], splice[s.to]]
    from.end('last words')
    expect(await receive(to)).toEqual({ bytes: Buffer.from('last words'), by: 'fin' })
    const answer = receive(from)
    to.write('one ')
    to.end('two')
    expect(await answer).toEqual({ bytes: Buffer.from('one two'), by: 'fin' })
    expect(await splice.result).toMatchObject({ reason: 'closed', [s.way]: 10 })
  })

  it.each(sides)('passes a reset of the $from on as a reset', async (s) => {
    const splice = await spliced()
    const [from, to] = [splice[s.from], splice[s.to]]
    from.write('x')
    await once(to, 'data')
    const ending = receive(to)
    from.resetAndDestroy()
    expect((await ending).by).toBe('ECONNRESET')
    expect(await splice.result).toMatchObject({ reason: 'reset', by: s.side, [s.way]: 1 })
    expect([splice.a.destroyed, splice.b.destroyed]).toEqual([true, true])
  })

  it.each(sides)('passes a reset on after a FIN of the $from', async (s) => {
    const splice = await spliced()
    const [from, to] = [splice[s.from], splice[s.to]]
    from.end()
    expect((await receive(to)).by).toBe('fin')
    const ending = receive(from)
    to.resetAndDestroy()
    expect((await ending).by).toBe('ECONNRESET')
    expect(await splice.result).toMatchObject({ reason: 'reset' })
  })

  it('resets both sides when it is aborted', async () => {
    const { left, right, aborter, result } = await spliced()
    const endings = [receive(left), receive(right)]
    aborter.abort()
    expect((await Promise.all(endings)).map((e) => e.by)).toEqual(['ECONNRESET', 'ECONNRESET'])
    expect(await result).toEqual({ aToB: 0, bToA: 0, reason: 'aborted' })
  })

  it('carries nothing when it was aborted before it began', async () => {
    const [[left, a], [right, b]] = await Promise.all([tcpPair(), tcpPair()])
    opened.push(left, a, right, b)
    const endings = [receive(left), receive(right)]
    expect(await spliceSockets(a, b, { signal: AbortSignal.abort() })).toMatchObject({ reason: 'aborted' })
    expect((await Promise.all(endings)).map((e) => e.by)).toEqual(['ECONNRESET', 'ECONNRESET'])
  })

  it('ends the other side when one was gone before it began', async () => {
    const [[left, a], [right, b]] = await Promise.all([tcpPair(), tcpPair()])
    opened.push(left, a, right, b)
    a.destroy()
    await once(a, 'close')
    const ending = receive(right)
    expect(await spliceSockets(a, b)).toMatchObject({ reason: 'reset', by: 'a' })
    expect((await ending).by).toBe('ECONNRESET')
  })

  it('lets a fast sender wait for a slow reader, and holds little meanwhile', async () => {
    const { left, right, a, b, result } = await spliced()
    const sent = new SeededBytes(3).block(48 * 1024 * 1024)
    let held = 0
    const measure = () => {
      held = Math.max(held, a.readableLength + b.writableLength)
    }
    a.on('data', measure)
    left.end(sent)
    await vi.waitFor(() => expect(a.isPaused()).toBe(true), { timeout: 60_000, interval: 5 })
    right.on('data', measure)
    const { bytes, by } = await receive(right)
    right.end()
    expect(by).toBe('fin')
    expect(bytes.equals(sent)).toBe(true)
    expect(held).toBeLessThan(1024 * 1024)
    expect(await result).toMatchObject({ aToB: sent.length, reason: 'closed' })
  })

  it('leaves no listener on its signal', async () => {
    const { left, right, aborter, result } = await spliced()
    left.end()
    right.end()
    await Promise.all([receive(left), receive(right)])
    await result
    aborter.abort()
    expect(await result).toMatchObject({ reason: 'closed' })
  })
})

describe('a reset', () => {
  it('is seen by the peer as a reset, and may be repeated', async () => {
    const [near, far] = await tcpPair()
    opened.push(near, far)
    const ending = receive(far)
    resetStream(near)
    resetStream(near)
    expect((await ending).by).toBe('ECONNRESET')
  })
})
