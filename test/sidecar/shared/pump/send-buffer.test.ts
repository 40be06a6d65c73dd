import { connect, createServer, type Socket } from 'node:net'
import { expect, it } from 'vitest'
import { descriptorOf } from '../../../../sidecar/shared/descriptor.ts'
import { grantedBytes, isTooNarrow, widen } from '../../../../sidecar/shared/pump/send-buffer.ts'
import { sendBufferOf } from '../../../../sidecar/shared/pump/tcp.ts'

const MB = 1_000_000

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
  socket.destroy()
  server.close()
})
