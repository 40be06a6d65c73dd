import { once } from 'node:events'
import { createServer, type Socket } from 'node:net'
import { afterEach, describe, expect, it } from 'vitest'
import { openSimultaneously } from '../../../sidecar/routing/simultaneous-open.ts'
import type { Opening } from '../../../sidecar/shared/wire.ts'

/** Two dials never cross on the loopback, so one side listens here; crossing ones are in test/mesh/punch.test.ts. */
const here = '127.0.0.1'
const words = { ask: 'a'.repeat(32), answer: 'b'.repeat(32) }
const signal = new AbortController().signal
const open: { destroy(): void }[] = []

afterEach(() => {
  for (const one of open.splice(0)) one.destroy()
})

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer().listen(0, here))
  await Promise.all(servers.map((s) => once(s, 'listening')))
  const ports = servers.map((s) => (s.address() as { port: number }).port)
  await Promise.all(servers.map((s) => once(s.close(), 'close')))
  return ports
}

function side(role: Opening['role'], ports: number[], more: Partial<Opening> = {}): Opening {
  const candidates = ports.map((port) => ({ address: here, port }))
  return { role, candidates, startInMs: 0, retryMs: 100, windowMs: 5_000, ...words, ...more }
}

async function pair(dialer: Promise<Socket>, acceptor: Promise<Socket>): Promise<[Socket, Socket]> {
  const both = await Promise.all([dialer, acceptor])
  open.push(...both)
  return both
}

async function isOneConnection(a: Socket, b: Socket): Promise<void> {
  expect([a.localPort, a.remotePort]).toEqual([b.remotePort, b.localPort])
  a.write('from the dialer')
  expect(String((await once(b, 'data'))[0])).toBe('from the dialer')
}

describe('a simultaneous open', () => {
  it('connects to a side that listens after it has dialled, from a port that it did not know', async () => {
    const [p = 0, q = 0, wrong = 0] = await freePorts(3)
    const listening = openSimultaneously(q, side('acceptor', [wrong], { listenAfterMs: 20 }), signal)
    const dialling = openSimultaneously(p, side('dialer', [q]), signal)
    await isOneConnection(...(await pair(dialling, listening)))
  })

  it('lets the asking side be the one that listens', async () => {
    const [p = 0, q = 0, wrong = 0] = await freePorts(3)
    const listening = openSimultaneously(q, side('dialer', [wrong], { listenAfterMs: 20 }), signal)
    const dialling = openSimultaneously(p, side('acceptor', [q]), signal)
    await isOneConnection(...(await pair(listening, dialling)))
  })

  it('does not take a stranger that answers at a candidate for the peer', async () => {
    const stranger = createServer((socket) => socket.on('error', () => undefined).end('hello, who are you?'))
    stranger.listen(0, here)
    await once(stranger, 'listening')
    open.push({ destroy: () => stranger.close() })
    const strange = (stranger.address() as { port: number }).port
    const [p = 0, q = 0] = await freePorts(2)
    await isOneConnection(
      ...(await pair(
        openSimultaneously(p, side('dialer', [strange, q]), signal),
        openSimultaneously(q, side('acceptor', [strange, p], { listenAfterMs: 20 }), signal),
      )),
    )
  })

  it('fails with what each candidate met when the window is over', async () => {
    const [p = 0, q = 0] = await freePorts(2)
    const alone = openSimultaneously(p, side('dialer', [q], { windowMs: 200 }), signal)
    await expect(alone).rejects.toMatchObject({
      code: 'timeout',
      message: expect.stringContaining('ECONNREFUSED'),
    })
  })

  it('leaves nothing open on its port when it is given up', async () => {
    const [p = 0, q = 0] = await freePorts(2)
    const aborter = new AbortController()
    const alone = openSimultaneously(p, side('dialer', [q], { listenAfterMs: 0 }), aborter.signal)
    const reason = new Error('stopping')
    aborter.abort(reason)
    await expect(alone).rejects.toBe(reason)
    const again = createServer().listen(p, here)
    await once(again, 'listening')
    again.close()
  })
})
