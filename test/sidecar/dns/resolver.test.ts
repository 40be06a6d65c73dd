import { createSocket } from 'node:dgram'
import { connect, createServer } from 'node:net'
import {
  type Answer,
  type DecodedPacket,
  decode,
  encode,
  RECURSION_DESIRED,
  type RecordType,
} from 'dns-packet'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { AnswerCache } from '../../../sidecar/dns/cache.ts'
import { listenResolver, type Resolver } from '../../../sidecar/dns/resolver.ts'
import type { ServiceEntry } from '../../../sidecar/shared/catalogue.ts'
import { createLogger } from '../../../sidecar/shared/log.ts'
import { Metrics } from '../../../sidecar/shared/metrics.ts'
import { run } from '../../lab/shell.ts'
import { Seeded } from '../../server/seeded.ts'
import { services, settings, viewOf } from './fixtures.ts'

type Behaviour = 'answers' | 'silent' | 'lies' | 'truncates' | 'fails'

/** A DNS server of the test: real sockets, on an address of loopback. */
class UpstreamServer {
  behaviour: Behaviour = 'answers'
  asked: string[] = []
  readonly #udp = createSocket('udp4')
  readonly #tcp = createServer()

  async listen(address: string, port: number): Promise<number> {
    await new Promise<void>((resolve) => this.#tcp.listen(port, address, resolve))
    const chosen = (this.#tcp.address() as { port: number }).port
    await new Promise<void>((resolve) => this.#udp.bind(chosen, address, () => resolve()))
    this.#udp.on('message', (message, from) => this.#onUdp(message, from.port, from.address))
    this.#tcp.on('connection', (socket) => {
      socket.on('data', (data) => {
        const answer = this.#answer(decode(data.subarray(2)))
        const length = Buffer.alloc(2)
        length.writeUInt16BE(answer.length)
        socket.write(Buffer.concat([length, answer]))
      })
    })
    return chosen
  }

  close(): void {
    this.#udp.close()
    this.#tcp.close()
  }

  #onUdp(message: Buffer, port: number, address: string): void {
    const query = decode(message)
    this.asked.push(`${query.questions?.[0]?.name} ${query.questions?.[0]?.type}`)
    const send = (answer: Buffer) => this.#udp.send(answer, port, address)
    if (this.behaviour === 'silent') return
    if (this.behaviour === 'lies') {
      send(this.#answer({ ...query, id: ((query.id ?? 0) + 1) & 0xffff }, '192.0.2.66'))
      send(this.#answer({ ...query, questions: [{ type: 'A', name: 'other.test' }] }, '192.0.2.66'))
      send(Buffer.from('not dns at all'))
      const stranger = createSocket('udp4')
      stranger.send(this.#answer(query, '192.0.2.66'), port, address, () => {
        stranger.close()
        send(this.#answer(query))
      })
      return
    }
    if (this.behaviour === 'truncates')
      send(encode({ type: 'response', id: query.id ?? 0, flags: 0x200, questions: query.questions ?? [] }))
    else if (this.behaviour === 'fails')
      send(encode({ type: 'response', id: query.id ?? 0, flags: 2, questions: query.questions ?? [] }))
    else send(this.#answer(query))
  }

  #answer(query: DecodedPacket, data = '192.0.2.1'): Buffer {
    const name = query.questions?.[0]?.name ?? ''
    const type = query.questions?.[0]?.type
    const many = name.startsWith('many.') ? 100 : 1
    const known = name.toLowerCase().endsWith('.test')
    const answers: Answer[] =
      known && type === 'A'
        ? Array.from({ length: many }, (_, i) => ({
            type: 'A',
            name,
            class: 'IN',
            ttl: 60,
            data: many === 1 ? data : `192.0.2.${i}`,
          }))
        : []
    return encode({
      type: 'response',
      id: query.id ?? 0,
      flags: known ? 0 : 3,
      questions: query.questions ?? [],
      answers,
    })
  }
}

const first = new UpstreamServer()
const second = new UpstreamServer()
let upstreamPort = 0
let now = 0
let resolver: Resolver
const view = viewOf()

beforeAll(async () => {
  upstreamPort = await first.listen('127.0.0.1', 0)
  await second.listen('127.0.0.2', upstreamPort)
  resolver = await listenResolver({
    addresses: ['127.0.0.1'],
    port: 0,
    upstreamPort,
    settings: { ...settings, servers: ['127.0.0.1', '127.0.0.2'] },
    view,
    cache: new AnswerCache(() => now),
    log: createLogger('test', 'silent'),
    metrics: new Metrics(),
  })
})

afterAll(async () => {
  await resolver.close()
  first.close()
  second.close()
})

function dig(...args: string[]): Promise<string> {
  return run(['dig', '@127.0.0.1', '-p', String(resolver.port), '+tries=1', '+time=6', ...args]).then(
    (r) => r.stdout,
  )
}

function query(name: string, type: RecordType, id: number): Buffer {
  return encode({ type: 'query', id, flags: RECURSION_DESIRED, questions: [{ name, type }] })
}

/** Sends queries at once from one socket; resolves with the answers by id. */
async function askAll(queries: Buffer[]): Promise<Map<number, DecodedPacket>> {
  const socket = createSocket('udp4')
  const answers = new Map<number, DecodedPacket>()
  const { promise, resolve } = Promise.withResolvers<void>()
  const ids = new Set(queries.map((q) => q.readUInt16BE(0)))
  socket.on('message', (message) => {
    const packet = decode(message)
    answers.set(packet.id ?? -1, packet)
    if (answers.size === ids.size) resolve()
  })
  for (const q of queries) socket.send(q, resolver.port, '127.0.0.1')
  await promise
  socket.close()
  return answers
}

describe('the resolver, asked by dig', () => {
  it.each([
    [['+short', 'web.default.svc.cluster.local'], '10.96.0.1\n'],
    [['+short', '+tcp', 'db.shop'], '10.96.0.2\n'],
    [['+short', 'AAAA', 'db.shop'], 'fd00:10:96::2\n'],
    [['+short', 'SRV', '_http._tcp.db.shop.svc.cluster.local'], '0 100 80 db.shop.svc.cluster.local.\n'],
    [['+short', '-x', '10.96.0.1'], 'web.default.svc.cluster.local.\n'],
    [['+short', 'set.shop'], '10.244.1.5\n10.244.1.6\n'],
    [['+short', 'out.shop'], 'internet.test.\n192.0.2.1\n'],
    [['+short', 'www.test'], '192.0.2.1\n'],
    [['+short', '+noedns', 'www.test'], '192.0.2.1\n'],
    [['+short', '+tcp', 'tcp.test'], '192.0.2.1\n'],
  ])('answers dig %j', async (args, expected) => {
    expect(await dig(...args)).toBe(expected)
  })

  it('says that it is the authority for its own names, and not for others', async () => {
    expect(await dig('web')).toMatch(/flags: qr aa rd ra;/)
    expect(await dig('www.test')).toMatch(/flags: qr rd ra;/)
    expect(await dig('nothing.default.svc.cluster.local')).toMatch(
      /status: NXDOMAIN[\s\S]*SOA\tns\.dns\.cluster\.local/,
    )
    expect(await dig('AAAA', 'web')).toMatch(/status: NOERROR/)
  })

  it('cuts what is too long for UDP at whole records, and gives all of it over TCP', async () => {
    const cut = await dig('+ignore', '+bufsize=512', 'many.test')
    expect(cut).toMatch(/flags: qr tc rd ra/)
    expect(cut).toMatch(/MSG SIZE {2}rcvd: (4\d\d|50\d|51[0-2])\n/)
    expect((await dig('+short', 'many.test')).trim().split('\n')).toHaveLength(100)
  })

  it.each([
    [['-c', 'CH', 'TXT', 'version.bind'], 'REFUSED'],
    [['+opcode=STATUS', 'web'], 'NOTIMP'],
  ])('refuses dig %j with %s', async (args, status) => {
    expect(await dig(...args)).toContain(`status: ${status}`)
  })

  it('names the service for prefetching', () => {
    expect(view.usedIds).toContain('default/web')
  })
})

describe('the query patterns of C libraries', () => {
  it('glibc: A and AAAA at once from one socket, down the search list to the true name', async () => {
    const list = ['default.svc.cluster.local', 'svc.cluster.local', 'cluster.local']
    const names = [...list.map((s) => `glibc.test.${s}`), 'glibc.test']
    const before = first.asked.length
    for (const [i, name] of names.entries()) {
      const answers = await askAll([query(name, 'A', 2 * i), query(name, 'AAAA', 2 * i + 1)])
      const rcodes = [...answers.values()].map((p) => (p as DecodedPacket & { rcode: string }).rcode)
      expect(rcodes).toEqual(i < 3 ? ['NXDOMAIN', 'NXDOMAIN'] : ['NOERROR', 'NOERROR'])
    }
    expect(first.asked.slice(before).sort()).toEqual(['glibc.test A', 'glibc.test AAAA'])
  })

  it('musl: everything at once, and the same ids again', async () => {
    const queries = [
      query('musl.test', 'A', 1),
      query('musl.test', 'AAAA', 2),
      query('web', 'A', 3),
      query('web', 'AAAA', 4),
    ]
    const answers = await askAll([...queries, ...queries])
    expect([...answers.keys()].sort()).toEqual([1, 2, 3, 4])
    expect(answers.get(3)?.answers).toMatchObject([{ data: '10.96.0.1' }])
  })

  it('0x20: the question’s own spelling comes back', async () => {
    const answers = await askAll([query('wWw.TeSt', 'A', 1), query('WeB', 'A', 2)])
    expect(answers.get(1)).toMatchObject({
      questions: [{ name: 'wWw.TeSt' }],
      answers: [{ name: 'wWw.TeSt' }],
    })
    expect(answers.get(2)).toMatchObject({ questions: [{ name: 'WeB' }], answers: [{ name: 'WeB' }] })
  })
})

describe('a question that was asked before', () => {
  const service = (answers: Map<number, DecodedPacket>, id: number) => answers.get(id)?.answers

  it('is answered the same, with its own id, and names the service again', async () => {
    const asked = await askAll([query('db.shop', 'A', 7)])
    view.usedIds.length = 0
    const again = await askAll([query('db.shop', 'A', 8), query('db.shop', 'A', 9)])
    expect([...again.keys()].sort()).toEqual([8, 9])
    expect({ ...again.get(8), id: 7 }).toEqual(asked.get(7))
    expect(view.usedIds).toEqual(['shop/db', 'shop/db'])
  })

  it('is answered anew once the services have changed', async () => {
    await askAll([query('moved.shop', 'A', 1)])
    const { byName } = view
    const [, db] = services as [ServiceEntry, ServiceEntry]
    view.byName = (namespace, name) =>
      name === 'moved' ? { ...db, name, clusterIPs: ['10.96.0.77'] } : byName(namespace, name)
    view.version++
    try {
      expect(service(await askAll([query('moved.shop', 'A', 2)]), 2)).toMatchObject([{ data: '10.96.0.77' }])
    } finally {
      view.byName = byName
      view.version++
    }
    expect(service(await askAll([query('moved.shop', 'A', 3)]), 3)).toEqual([])
  })

  it('is not mixed up with one that differs in a flag, in EDNS or in transport', async () => {
    const flags = [[], ['+norec'], ['+noedns'], ['+bufsize=600'], ['+tcp']]
    for (const more of [...flags, ...flags]) {
      const said = await dig('web', '+nocookie', ...more)
      expect(said).toContain('\t10.96.0.1\n')
      expect(said.includes(' rd ')).toBe(!more.includes('+norec'))
      expect(said.includes('EDNS: version: 0')).toBe(!more.includes('+noedns'))
    }
  })
})

describe('upstream servers', () => {
  it('are believed only with the right id, question and address', async () => {
    first.behaviour = 'lies'
    expect(await dig('+short', 'lies.test')).toBe('192.0.2.1\n')
    first.behaviour = 'answers'
  })

  it('are asked over TCP when they truncate', async () => {
    first.behaviour = 'truncates'
    expect(await dig('+short', 'truncates.test')).toBe('192.0.2.1\n')
    first.behaviour = 'answers'
  })

  it('are asked once for the same question of many', async () => {
    const before = first.asked.length
    await askAll(Array.from({ length: 50 }, (_, i) => query('once.test', 'A', i)))
    expect(first.asked.slice(before)).toEqual(['once.test A'])
  })

  it('stand in for one another, and an outdated answer for all of them', async () => {
    expect(await dig('+short', 'kept.test')).toBe('192.0.2.1\n')
    first.behaviour = 'silent'
    expect(await dig('+short', 'second.test')).toBe('192.0.2.1\n')
    second.behaviour = 'fails'
    first.behaviour = 'fails'
    expect(await dig('never.test')).toContain('status: SERVFAIL')
    now += 100
    expect(await dig('kept.test')).toMatch(/kept\.test\.\t\t30\tIN\tA\t192\.0\.2\.1/)
    now += 10_000
    expect(await dig('kept.test')).toContain('status: SERVFAIL')
    first.behaviour = 'answers'
    second.behaviour = 'answers'
  })
})

describe('TCP', () => {
  const framed = (message: Buffer) =>
    Buffer.concat([Buffer.from([message.length >> 8, message.length & 255]), message])

  it('takes several queries on one connection, byte by byte', async () => {
    const socket = connect(resolver.port, '127.0.0.1')
    let received = Buffer.alloc(0)
    const { promise, resolve } = Promise.withResolvers<void>()
    socket.on('data', (data) => {
      received = Buffer.concat([received, data])
      const one = received.length < 2 ? Number.POSITIVE_INFINITY : 2 + received.readUInt16BE(0)
      if (received.length > one && received.length >= one + 2 + received.readUInt16BE(one)) resolve()
    })
    for (const byte of Buffer.concat([framed(query('web', 'A', 1)), framed(query('db.shop', 'A', 2))]))
      socket.write(Buffer.from([byte]))
    await promise
    const length = received.readUInt16BE(0)
    expect(decode(received.subarray(2, 2 + length))).toMatchObject({
      id: 1,
      answers: [{ data: '10.96.0.1' }],
    })
    expect(decode(received.subarray(4 + length))).toMatchObject({ id: 2, answers: [{ data: '10.96.0.2' }] })
    socket.destroy()
  })

  it('ends a connection that sends what is no query', async () => {
    const socket = connect(resolver.port, '127.0.0.1')
    const { promise, resolve } = Promise.withResolvers<void>()
    socket.once('close', () => resolve())
    socket.write(Buffer.from([0, 3, 1, 2, 3]))
    await promise
  })
})

describe('malformed messages', () => {
  const random = new Seeded(20_261_123)
  const valid = [
    query('web.default.svc.cluster.local', 'A', 7),
    query('www.test', 'AAAA', 8),
    query('_http._tcp.db.shop', 'SRV', 9),
  ]
  const truncated = valid.flatMap((q) => Array.from({ length: q.length }, (_, i) => q.subarray(0, i)))
  const mutated = Array.from({ length: 2_000 }, (_, i) => {
    const copy = Buffer.from(valid[i % valid.length] ?? [])
    copy[random.below(copy.length)] = random.below(256)
    return copy
  })
  const messages = [
    ...Array.from({ length: 10_000 }, () => random.bytes(random.below(120))),
    ...truncated,
    ...mutated,
  ]

  it('by the ten thousand over UDP leave it answering', async () => {
    const socket = createSocket('udp4')
    socket.on('message', () => undefined)
    for (let i = 0; i < messages.length; i += 50) {
      for (const m of messages.slice(i, i + 50)) socket.send(m, resolver.port, '127.0.0.1')
      expect((await askAll([query('web', 'A', i & 0xffff)])).size).toBe(1)
    }
    socket.close()
    await expect.poll(() => resolver.pending, { timeout: 60_000 }).toBe(0)
  })

  it('by the ten thousand over TCP leave it answering', async () => {
    for (let i = 0; i < messages.length; i += 100) {
      const batch = messages.slice(i, i + 100).filter((m) => m.length > 0)
      const sockets = [0, 1, 2, 3].map((n) => {
        const socket = connect(resolver.port, '127.0.0.1')
        socket.on('error', () => undefined)
        socket.resume()
        socket.end(
          Buffer.concat(batch.filter((_, k) => k % 4 === n).map((m, k) => (k % 3 === 0 ? m : framed(m)))),
        )
        return new Promise<void>((resolve) => socket.once('close', () => resolve()))
      })
      await Promise.all(sockets)
    }
    expect(await dig('+short', '+tcp', 'web')).toBe('10.96.0.1\n')
    await expect.poll(() => resolver.pending, { timeout: 60_000 }).toBe(0)
  }, 60_000)

  function framed(message: Buffer): Buffer {
    return Buffer.concat([Buffer.from([message.length >> 8, message.length & 255]), message])
  }
})
