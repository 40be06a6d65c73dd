import { once } from 'node:events'
import type { Socket } from 'node:net'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { relayProtocol } from '../../sidecar/shared/wire.ts'
import { SeededBytes } from '../conformance/traffic.ts'
import { receive } from '../sidecar/shared/tcp.ts'
import { identityFor, pod, TestServer } from './harness.ts'
import { connectTo, readStatus, upgradeRequest } from './http.ts'

const [alice, bob, carol] = [pod('alice'), pod('bob'), pod('carol')].map(identityFor) as [Id, Id, Id]
type Id = ReturnType<typeof identityFor>
let server: TestServer
const opened: Socket[] = []

beforeAll(async () => {
  server = await TestServer.start({ limits: { pairsPerPod: 4, pairs: 6 } })
})
afterEach(async () => {
  for (const socket of opened.splice(0)) socket.destroy()
  await server.untilQuiet()
  server.relay.revoke(alice.podUid)
  server.relay.revoke(bob.podUid)
  await server.until('relay_pairs', 0)
})
afterAll(() => server.close())

async function send(text: string, to = server): Promise<Socket> {
  const socket = await connectTo(to.port)
  opened.push(socket)
  socket.write(text)
  return socket
}

async function statusOf(text: string, to = server): Promise<number> {
  return readStatus(await send(text, to))
}

interface Joined {
  dialer: Socket
  acceptor: Socket
  tickets: { dialer: string; acceptor: string }
}

/** A pair of which both sides have joined. */
async function join(first: 'dialer' | 'acceptor' = 'dialer'): Promise<Joined> {
  const tickets = server.relay.issue(alice, bob)
  const second = first === 'dialer' ? 'acceptor' : 'dialer'
  const one = await server.spend(() => send(upgradeRequest(tickets[first])))
  const other = await send(upgradeRequest(tickets[second]))
  expect(await Promise.all([readStatus(one), readStatus(other)])).toEqual([101, 101])
  const [dialer, acceptor] = first === 'dialer' ? [one, other] : [other, one]
  return { dialer, acceptor, tickets }
}

const sides = [
  { from: 'dialer', to: 'acceptor' },
  { from: 'acceptor', to: 'dialer' },
] as const

describe('two sides with their tickets', () => {
  it.each(['dialer', 'acceptor'] as const)('are joined when the %s comes first', async (first) => {
    const { dialer, acceptor } = await join(first)
    expect(server.relay.joinedPairs).toBe(1)
    dialer.end('ping')
    expect(await receive(acceptor)).toEqual({ bytes: Buffer.from('ping'), by: 'fin' })
    acceptor.end('pong')
    expect(await receive(dialer)).toEqual({ bytes: Buffer.from('pong'), by: 'fin' })
    await server.until('relay_pairs', 0)
    expect(server.relay.joinedPairs).toBe(0)
  })

  it('exchange bytes both ways at once, exactly', async () => {
    const { dialer, acceptor } = await join()
    const [up, down] = [new SeededBytes(1).block(5_000_001), new SeededBytes(2).block(4_000_003)]
    dialer.end(up)
    acceptor.end(down)
    const [atAcceptor, atDialer] = await Promise.all([receive(acceptor), receive(dialer)])
    expect([atAcceptor.by, atDialer.by]).toEqual(['fin', 'fin'])
    expect([atAcceptor.bytes.equals(up), atDialer.bytes.equals(down)]).toEqual([true, true])
  })

  it('lose nothing that was sent right behind the request', async () => {
    const tickets = server.relay.issue(alice, bob)
    const dialer = await send(`${upgradeRequest(tickets.dialer)}early `)
    dialer.end('bird')
    const acceptor = await send(`${upgradeRequest(tickets.acceptor)}worm`)
    expect(await Promise.all([readStatus(dialer), readStatus(acceptor)])).toEqual([101, 101])
    acceptor.end()
    const [atAcceptor, atDialer] = await Promise.all([receive(acceptor), receive(dialer)])
    expect([String(atAcceptor.bytes), String(atDialer.bytes)]).toEqual(['early bird', 'worm'])
  })

  it.each(sides)('keep one direction when the $from ends the other', async ({ from, to }) => {
    const joined = await join()
    joined[from].end('last words')
    expect(await receive(joined[to])).toEqual({ bytes: Buffer.from('last words'), by: 'fin' })
    const answer = new SeededBytes(3).block(1_000_000)
    joined[to].end(answer)
    const { bytes, by } = await receive(joined[from])
    expect({ by, exact: bytes.equals(answer) }).toEqual({ by: 'fin', exact: true })
  })

  it.each(sides)('see a reset of the $from as a reset', async ({ from, to }) => {
    const joined = await join()
    joined[from].write('x')
    await once(joined[to].resume(), 'data')
    const ending = receive(joined[to])
    joined[from].resetAndDestroy()
    expect((await ending).by).toBe('ECONNRESET')
    await server.until('relay_pairs', 0)
  })

  it('are cut off when either pod is gone', async () => {
    for (const gone of [alice, bob]) {
      const { dialer, acceptor } = await join()
      const endings = [receive(dialer), receive(acceptor)]
      server.relay.revoke(carol.podUid)
      expect(server.relay.joinedPairs).toBe(1)
      server.relay.revoke(gone.podUid)
      expect((await Promise.all(endings)).map((e) => e.by)).toEqual(['ECONNRESET', 'ECONNRESET'])
    }
  })
})

describe('a ticket', () => {
  it('is good for one join', async () => {
    const { tickets } = await join()
    expect(await statusOf(upgradeRequest(tickets.dialer))).toBe(403)
    expect(await statusOf(upgradeRequest(tickets.acceptor))).toBe(403)
    expect(server.relay.joinedPairs).toBe(1)
  })

  it('is spent while its side still waits', async () => {
    const tickets = server.relay.issue(alice, bob)
    const waiting = await server.spend(() => send(upgradeRequest(tickets.dialer)))
    expect(await statusOf(upgradeRequest(tickets.dialer))).toBe(403)
    await send(upgradeRequest(tickets.acceptor))
    expect(await readStatus(waiting)).toBe(101)
  })

  it.each([
    ['unknown', `test.${'A'.repeat(43)}`],
    ['malformed', 'x'],
    ['empty', ''],
    ["of an object's own name", '__proto__'],
    ['very long', 'A'.repeat(4_000)],
  ])('that is %s is refused', async (_what, ticket) => {
    expect(await statusOf(upgradeRequest(ticket))).toBe(403)
  })

  it('that is not there is refused', async () => {
    const request = `GET /relay HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: ${relayProtocol}\r\nHost: x\r\n\r\n`
    expect(await statusOf(request)).toBe(403)
  })

  it('is void when its pod is gone', async () => {
    const tickets = server.relay.issue(alice, bob)
    server.relay.revoke(bob.podUid)
    expect(await statusOf(upgradeRequest(tickets.dialer))).toBe(403)
  })

  it('is void when the other side came and left', async () => {
    const tickets = server.relay.issue(alice, bob)
    const waiting = await server.spend(() => send(upgradeRequest(tickets.dialer)))
    waiting.resetAndDestroy()
    await server.until('relay_pairs', 0)
    expect(await statusOf(upgradeRequest(tickets.acceptor))).toBe(403)
  })
})

describe('a request that is no join', () => {
  it.each([
    ['another path', { path: '/' }],
    ['a longer path', { path: '/relay/x' }],
    ['a path with a query', { path: '/relay?x' }],
    ['the path of the control channel', { path: '/control' }],
    ['another protocol', { upgrade: 'websocket' }],
    ['another method', { method: 'POST' }],
  ])('with %s is not found, and spends no ticket', async (_what, how) => {
    const tickets = server.relay.issue(alice, bob)
    expect(await statusOf(upgradeRequest(tickets.dialer, how))).toBe(404)
    const dialer = await send(upgradeRequest(tickets.dialer))
    await send(upgradeRequest(tickets.acceptor))
    expect(await readStatus(dialer)).toBe(101)
  })

  it('because it asks for no upgrade is not found', async () => {
    expect(await statusOf('GET /relay HTTP/1.1\r\nHost: x\r\n\r\n')).toBe(404)
  })
})

describe('the limits', () => {
  const busy = { code: 'limit', message: expect.stringContaining('has too many relayed connections') }

  it('let nobody use up what a peer has for all, and let go of ended pairs', async () => {
    const small = await TestServer.start({ limits: { pairsPerPod: 3, pairsPerPeer: 2, pairsToPod: 3 } })
    const { relay } = small
    const tickets = relay.issue(alice, bob)
    relay.issue(alice, bob)
    expect(() => relay.issue(alice, bob)).toThrow(expect.objectContaining({ code: 'limit' }))
    relay.issue(alice, carol)
    expect(() => relay.issue(alice, bobsTwin())).toThrow(expect.objectContaining(busy))
    relay.issue(bob, alice)
    relay.issue(carol, bob)
    expect(() => relay.issue(bobsTwin(), bob)).toThrow(expect.objectContaining(busy))
    const dialer = await connectTo(small.port)
    const acceptor = await connectTo(small.port)
    dialer.write(upgradeRequest(tickets.dialer))
    acceptor.write(upgradeRequest(tickets.acceptor))
    expect(await Promise.all([readStatus(dialer), readStatus(acceptor)])).toEqual([101, 101])
    dialer.resetAndDestroy()
    await small.until('relay_pairs', 4)
    relay.issue(alice, bob)
    acceptor.destroy()
    await small.close()
  })

  it('count the pairs of the server', async () => {
    const [dora, emil] = [identityFor(pod('dora')), identityFor(pod('emil'))]
    for (let i = 0; i < 4; i++) server.relay.issue(alice, bob)
    for (let i = 0; i < 2; i++) server.relay.issue(carol, bobsTwin())
    expect(() => server.relay.issue(dora, emil)).toThrow(expect.objectContaining({ code: 'limit' }))
    server.relay.revoke(carol.podUid)
    server.relay.issue(dora, emil)
    server.relay.revoke(dora.podUid)
  })

  const bobsTwin = () => identityFor(pod('bobs-twin'))
})

describe('a side whose peer does not come', () => {
  it('is told so after the deadline, and the late one is refused', async () => {
    const hasty = await TestServer.start({ limits: { joinMs: 50 } })
    const tickets = hasty.relay.issue(alice, bob)
    const waiting = await send(upgradeRequest(tickets.dialer), hasty)
    expect(await readStatus(waiting)).toBe(504)
    expect((await receive(waiting)).by).toBe('fin')
    expect(await statusOf(upgradeRequest(tickets.acceptor), hasty)).toBe(403)
    for (const socket of opened.splice(0)) socket.destroy()
    await hasty.untilQuiet()
    await hasty.close()
  })

  it('is let go even if it never closes', async () => {
    const hasty = await TestServer.start({ limits: { joinMs: 1 } })
    await statusOf(upgradeRequest(hasty.relay.issue(alice, bob).dialer), hasty)
    await hasty.untilQuiet()
    await hasty.close()
  })
})
