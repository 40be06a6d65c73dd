import { connect, createServer } from 'node:net'
import { expect, it } from 'vitest'
import { descriptorOf } from '../../../../sidecar/shared/descriptor.ts'
import { Port } from '../../../../sidecar/shared/pump/lanes.ts'
import { isFar, isPacedInVain, Unpaced } from '../../../../sidecar/shared/pump/pacing.ts'
import { congestionControlOf, setCongestionControl } from '../../../../sidecar/shared/pump/tcp.ts'

it.each([
  { minRttMs: 0.05, rttMs: 0.05, congestionControl: 'bbr', is: true },
  { minRttMs: 0.05, rttMs: 9, congestionControl: 'bbr', is: true },
  { minRttMs: 0.05, rttMs: 10, congestionControl: 'bbr', is: false },
  { minRttMs: 0.99, rttMs: 2, congestionControl: 'bbr', is: true },
  { minRttMs: 1, rttMs: 1, congestionControl: 'bbr', is: false },
  { minRttMs: 40, rttMs: 40, congestionControl: 'bbr', is: false },
  { minRttMs: 0.05, rttMs: 0.05, congestionControl: 'cubic', is: false },
  { minRttMs: 0.05, rttMs: 0.05, congestionControl: '', is: false },
])(
  '$congestionControl at $rttMs ms, $minRttMs at best, is in vain: $is',
  ({ congestionControl, is, ...times }) => {
    expect(isPacedInVain(times, congestionControl)).toBe(is)
  },
)

it.each([
  { rttMs: 0.05, is: false },
  { rttMs: 9.9, is: false },
  { rttMs: 10, is: true },
  { rttMs: 400, is: true },
])('a path of $rttMs ms is far: $is', ({ rttMs, is }) => {
  expect(isFar({ rttMs })).toBe(is)
})

it('on loopback, a connection with BBR that is full, or has been kept for long, gets the windows of Reno; what the node has chosen else stays', async () => {
  const server = createServer((socket) => socket.pause()).listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const address = server.address()
  const portNumber = typeof address === 'object' ? (address?.port ?? 0) : 0
  const wishes = ['bbr', 'cubic', 'reno'].flatMap((wanted) => [
    { wanted, reason: 'full' },
    { wanted, reason: 'kept' },
  ])
  for (const { wanted, reason } of wishes) {
    const socket = connect({ host: '127.0.0.1', port: portNumber })
    await new Promise((resolve) => socket.once('connect', resolve))
    const fd = descriptorOf(socket) ?? -1
    setCongestionControl(fd, wanted)
    const before = congestionControlOf(fd) // a kernel without BBR keeps its own
    expect(before).not.toBe('')
    const port = new Port(fd, { mayUnpace: true })
    if (reason === 'full') port.full()
    else port.unpace()
    expect(congestionControlOf(fd)).toBe(before === 'bbr' ? 'reno' : before)
    port.look()
    expect(port.turnedFar, 'the path is as near as it was').toBe(false)
    setCongestionControl(fd, wanted)
    const unpaced = Unpaced.of(fd)
    expect(unpaced !== undefined).toBe(before === 'bbr')
    expect(unpaced?.check(performance.now() + 1_000), 'the path is as near as it was').not.toBe(false)
    socket.destroy()
  }
  server.close()
})
