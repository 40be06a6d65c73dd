import { connect, createServer, type Socket } from 'node:net'
import { expect, it } from 'vitest'
import { descriptorOf } from '../../../../sidecar/shared/descriptor.ts'
import { getsockopt, SOL_SOCKET } from '../../../../sidecar/shared/pump/libc.ts'
import {
  grantedBytes,
  isTooNarrow,
  rateFor,
  smooth,
  widen,
} from '../../../../sidecar/shared/pump/send-buffer.ts'
import { sendBufferOf } from '../../../../sidecar/shared/pump/tcp.ts'

const MB = 1_000_000
const SO_MAX_PACING_RATE = 47

function maxPacingRateOf(fd: number): bigint {
  const [value, length] = [Buffer.alloc(8), Uint32Array.of(8)]
  expect(getsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, value, length)).toBe(0)
  return value.readBigUInt64LE()
}

it.each([
  { buffer: 6 * MB, minRttMs: 100, rate: 60 * MB },
  { buffer: 6 * MB, minRttMs: 400, rate: 15 * MB },
  { buffer: 6 * MB, minRttMs: 10, rate: 600 * MB },
  { buffer: 1 * MB, minRttMs: 0, rate: 100_000 * MB },
])('a buffer of $buffer bytes and $minRttMs ms make $rate bytes a second', ({ buffer, minRttMs, rate }) => {
  expect(rateFor(buffer, { minRttMs })).toBe(rate)
})

it.each([
  {
    what: 'far, and full of what is on its way',
    rttMs: 100,
    flight: 3 * MB,
    buffer: 4 * MB,
    wide: 8 * MB,
    is: true,
  },
  { what: 'near', rttMs: 5, flight: 3 * MB, buffer: 4 * MB, wide: 8 * MB, is: false },
  {
    what: 'far, but its reader is slow',
    rttMs: 100,
    flight: 0.2 * MB,
    buffer: 4 * MB,
    wide: 8 * MB,
    is: false,
  },
  {
    what: 'far, but the kernel would grant less',
    rttMs: 100,
    flight: 3 * MB,
    buffer: 4 * MB,
    wide: 0.4 * MB,
    is: false,
  },
  { what: 'far, and as wide as can be', rttMs: 100, flight: 6 * MB, buffer: 8 * MB, wide: 8 * MB, is: false },
])(
  'a send buffer of a connection that is $what: too narrow is $is',
  ({ rttMs, flight, buffer, wide, is }) => {
    expect(isTooNarrow({ bytes: flight, rttMs, minRttMs: rttMs }, buffer, wide)).toBe(is)
  },
)

it('this kernel grants a send buffer, and one on loopback is left alone', async () => {
  expect(grantedBytes()).toBeGreaterThan(0)
  const server = createServer((socket) => socket.resume()).listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const address = server.address()
  const socket: Socket = connect({
    host: '127.0.0.1',
    port: typeof address === 'object' ? (address?.port ?? 0) : 0,
  })
  await new Promise((resolve) => socket.once('connect', resolve))
  const fd = descriptorOf(socket) ?? -1
  const before = sendBufferOf(fd)
  expect(before).toBeGreaterThan(0)
  expect(widen(fd)).toBe(false)
  expect(sendBufferOf(fd)).toBe(before)
  expect(maxPacingRateOf(fd), 'no bound').toBe(2n ** 64n - 1n)
  smooth(fd)
  const rate = Number(maxPacingRateOf(fd))
  expect(rate).toBeGreaterThanOrEqual(rateFor(before, { minRttMs: 1_000 }))
  expect(rate).toBeLessThan(2 ** 32)
  socket.destroy()
  server.close()
})
