import { connect, createServer } from 'node:net'
import { expect, it } from 'vitest'
import { descriptorOf } from '../../../../sidecar/shared/descriptor.ts'
import { Port } from '../../../../sidecar/shared/pump/lanes.ts'
import { isPacedInVain } from '../../../../sidecar/shared/pump/pacing.ts'
import { congestionControlOf, setCongestionControl } from '../../../../sidecar/shared/pump/tcp.ts'

it.each([
  { minRttMs: 0.05, congestionControl: 'bbr', is: true },
  { minRttMs: 0.99, congestionControl: 'bbr', is: true },
  { minRttMs: 1, congestionControl: 'bbr', is: false },
  { minRttMs: 40, congestionControl: 'bbr', is: false },
  { minRttMs: 0.05, congestionControl: 'cubic', is: false },
  { minRttMs: 0.05, congestionControl: '', is: false },
])('$congestionControl at $minRttMs ms is in vain: $is', ({ minRttMs, congestionControl, is }) => {
  expect(isPacedInVain({ minRttMs }, congestionControl)).toBe(is)
})

it('on loopback, a full connection with BBR gets the windows of Reno; what the node has chosen else stays', async () => {
  const server = createServer((socket) => socket.pause()).listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const address = server.address()
  const portNumber = typeof address === 'object' ? (address?.port ?? 0) : 0
  for (const wanted of ['bbr', 'cubic', 'reno']) {
    const socket = connect({ host: '127.0.0.1', port: portNumber })
    await new Promise((resolve) => socket.once('connect', resolve))
    const fd = descriptorOf(socket) ?? -1
    setCongestionControl(fd, wanted)
    const before = congestionControlOf(fd) // a kernel without BBR keeps its own
    expect(before).not.toBe('')
    const port = new Port(fd)
    port.full()
    expect(congestionControlOf(fd)).toBe(before === 'bbr' ? 'reno' : before)
    setCongestionControl(fd, wanted)
    port.full()
    expect(congestionControlOf(fd), 'it is looked at once').toBe(before)
    socket.destroy()
  }
  server.close()
})
