import { once } from 'node:events'
import { connect, createServer, type Server, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { RelayJoiner } from '../../../sidecar/routing/relay-join.ts'
import { descriptorOf } from '../../../sidecar/shared/descriptor.ts'
import { serverNameOf } from '../../../sidecar/shared/identity.ts'
import { tlsFloor } from '../../../sidecar/shared/tls.ts'
import { SeededBytes } from '../../conformance/traffic.ts'
import { identityFor, log, pod, TestServer, trustDomain } from '../../server/harness.ts'

const [alice, bob] = [pod('alice'), pod('bob')].map(identityFor) as [Id, Id]
type Id = ReturnType<typeof identityFor>
/** What a network does with what is not TLS. */
const refusals = {
  resets: (client: Socket) => client.resetAndDestroy(),
  swallows: (client: Socket) => void client.resume(),
  'answers itself': (client: Socket) =>
    client.end('HTTP/1.1 403 Forbidden\r\nServer: proxy\r\nContent-Length: 2\r\n\r\nno'),
}
type Refusal = keyof typeof refusals

let server: TestServer
const open: { destroy(): void }[] = []
const boxes: Server[] = []

beforeAll(async () => {
  server = await TestServer.start()
})
afterEach(async () => {
  for (const socket of open.splice(0)) socket.destroy()
  for (const box of boxes.splice(0)) box.close()
  await server.untilQuiet()
})
afterAll(() => server.close())

function through(client: Socket): void {
  const onward = connect(server.port, '127.0.0.1')
  open.push(onward.on('error', () => undefined))
  client.pipe(onward).pipe(client)
}

/** Lets TLS through to the server; `refuse` deals with all else. Counts what it has refused. */
async function middlebox(refuse: (client: Socket) => void): Promise<{ port: number; refused: number }> {
  const box = createServer((client) => {
    open.push(client.on('error', () => undefined))
    client.once('data', (bytes) => {
      client.pause()
      client.unshift(bytes)
      if (bytes[0] === 0x16) return through(client)
      seen.refused++
      refuse(client)
    })
  })
  boxes.push(box)
  await once(box.listen(0, '127.0.0.1'), 'listening')
  const seen = { port: (box.address() as { port: number }).port, refused: 0 }
  return seen
}

const joiner = (clock = { ms: 0 }) =>
  new RelayJoiner({
    tls: async () => ({
      ...tlsFloor,
      ca: server.authority.trustBundle,
      servername: serverNameOf(trustDomain),
    }),
    log,
    signDeadlineMs: 200,
    now: () => clock.ms,
  })

async function pair(dialer: RelayJoiner, at: number, acceptor: RelayJoiner, atPort: number) {
  const tickets = server.relay.issue(alice, bob)
  const streams = await Promise.all([
    dialer.join({ host: '127.0.0.1', port: at }, tickets.dialer),
    acceptor.join({ host: '127.0.0.1', port: atPort }, tickets.acceptor),
  ])
  open.push(...streams)
  return streams
}

async function carries(from: Duplex, to: Duplex, seed: number): Promise<void> {
  const sent = new SeededBytes(seed).block(3_000_001)
  from.write(sent)
  const parts: Buffer[] = []
  for (let length = 0; length < sent.length; ) {
    const part: Buffer | null = to.read()
    if (part === null) await once(to, 'readable')
    else length += parts.push(part) && part.length
  }
  expect(Buffer.concat(parts).equals(sent)).toBe(true)
}

describe('a join of the relay', () => {
  it('goes in the clear where it can', async () => {
    const [a, b] = await pair(joiner(), server.port, joiner(), server.port)
    expect([descriptorOf(a), descriptorOf(b)].map((fd) => typeof fd)).toEqual(['number', 'number'])
    await carries(a, b, 1)
  })

  it.each(Object.keys(refusals) as Refusal[])(
    'goes inside TLS where the network %s all else',
    async (how) => {
      const box = await middlebox(refusals[how])
      const [a, b] = await pair(joiner(), box.port, joiner(), server.port)
      expect([descriptorOf(a), typeof descriptorOf(b)]).toEqual([undefined, 'number'])
      await Promise.all([carries(a, b, 2), carries(b, a, 3)])
      b.end()
      await once(a.resume(), 'end')
    },
  )

  it('remembers that for some minutes, on both sides', async () => {
    const clock = { ms: 0 }
    const box = await middlebox(refusals.resets)
    const [dialer, acceptor] = [joiner(clock), joiner(clock)]
    for (const ms of [0, 60_000]) {
      clock.ms = ms
      const [a, b] = await pair(dialer, box.port, acceptor, box.port)
      await carries(a, b, 4)
      await expect.poll(() => box.refused).toBe(4) // each asks once more whether it is so
    }
    clock.ms = 11 * 60_000
    await pair(dialer, box.port, acceptor, box.port)
    await expect.poll(() => box.refused).toBe(8)
  })

  it('does not take a server that was away for a network that lets nothing else out', async () => {
    let seen = 0
    const box = await middlebox((client) => {
      if (++seen <= 2) client.resetAndDestroy()
      else through(client)
    })
    const [dialer, acceptor] = [joiner(), joiner()]
    for (const stream of await pair(dialer, box.port, acceptor, box.port))
      expect(descriptorOf(stream)).toBe(undefined)
    await expect.poll(() => seen).toBe(4)
    const [a, b] = await pair(dialer, box.port, acceptor, box.port)
    expect([descriptorOf(a), descriptorOf(b)].map((fd) => typeof fd)).toEqual(['number', 'number'])
  })

  it('waits in the clear for a peer that is late, and is not sent twice', async () => {
    const tickets = server.relay.issue(alice, bob)
    const place = { host: '127.0.0.1', port: server.port }
    const before = await server.spentTickets()
    const waiting = joiner().join(place, tickets.dialer)
    await new Promise((resolve) => setTimeout(resolve, 500))
    expect(server.server.connections).toBe(1)
    open.push(await joiner().join(place, tickets.acceptor), await waiting)
    expect((await server.spentTickets()) - before).toBe(2)
  })

  it('fails with what the server says of a ticket, and does not blame the network', async () => {
    const tickets = server.relay.issue(alice, bob)
    const place = { host: '127.0.0.1', port: server.port }
    const one = joiner()
    await expect(one.join(place, `${tickets.dialer.slice(0, -1)}!`)).rejects.toThrow('it answers 403')
    server.relay.revoke(alice.podUid)
    await expect(one.join(place, tickets.dialer)).rejects.toThrow('it answers 403')
    const [a] = await pair(one, server.port, joiner(), server.port)
    expect(descriptorOf(a)).toBeTypeOf('number')
  })

  it('fails where neither way leads to the server, and trusts no other one', async () => {
    const closed = await middlebox(() => undefined)
    boxes.splice(0).map((box) => box.close())
    const gone = joiner().join({ host: '127.0.0.1', port: closed.port }, 'test.none')
    await expect(gone).rejects.toThrow('ECONNREFUSED')
    const stranger = await TestServer.start()
    const box = createServer((client) => {
      open.push(client)
      const onward = connect(stranger.port, '127.0.0.1').on('error', () => undefined)
      client
        .on('error', () => undefined)
        .once('data', (bytes) => {
          if (bytes[0] !== 0x16) client.resetAndDestroy()
          else {
            onward.write(bytes)
            client.pipe(onward).pipe(client)
          }
        })
    })
    boxes.push(box)
    await once(box.listen(0, '127.0.0.1'), 'listening')
    const { port } = box.address() as { port: number }
    const tickets = stranger.relay.issue(alice, bob)
    await expect(joiner().join({ host: '127.0.0.1', port }, tickets.dialer)).rejects.toThrow('Cannot join')
    expect(await stranger.spentTickets()).toBe(0)
    for (const socket of open.splice(0)) socket.destroy()
    await stranger.close()
  })
})
