import { createHash, randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { CertificateAuthority } from '../../../../sidecar/shared/authority/certificate-authority.ts'
import { podServerName } from '../../../../sidecar/shared/identity.ts'
import { SideConnection } from '../../../../sidecar/shared/pump/connections.ts'
import {
  close,
  dup,
  recv,
  recvFlags,
  SHUT_WR,
  send,
  sendFlags,
  shutdown,
} from '../../../../sidecar/shared/pump/libc.ts'
import { nameBytes, type Report } from '../../../../sidecar/shared/pump/messages.ts'
import { TlsContext } from '../../../../sidecar/shared/pump/openssl.ts'
import { TlsConnection } from '../../../../sidecar/shared/pump/tls-connection.ts'
import { createKeyPair } from '../../../../sidecar/shared/tls.ts'
import { Bench, contextsOf, descriptors } from '../../express/bench.ts'

const trustDomain = 'cluster.local'
const name = Buffer.alloc(nameBytes, 7)

/** A pod's certificate, and the roots that it believes in. */
async function identityOf(authority: CertificateAuthority, podUid: string) {
  const keys = await createKeyPair()
  const identity = { trustDomain, namespace: 'default', serviceAccount: 'default', podUid }
  const { chain, trustBundle } = await authority.issue(identity, keys.publicKey, 600_000)
  return { key: keys.privateKey.reveal(), chain, trustBundle }
}

async function withAuthorities<T>(use: (...authorities: CertificateAuthority[]) => Promise<T>): Promise<T> {
  const folders = [0, 1].map(() => mkdtempSync(join(tmpdir(), 'side-')))
  try {
    return await use(
      ...(await Promise.all(folders.map((folder) => CertificateAuthority.open(folder, trustDomain)))),
    )
  } finally {
    for (const folder of folders) rmSync(folder, { recursive: true })
  }
}

type Outcome = Extract<Report, { type: 'finished' }>

/** One end, given turns by a loop as the worker's are. */
class End {
  readonly connection: SideConnection
  place = -1
  turns = 0
  outcome: Outcome | undefined
  readonly reports: Report[] = []

  constructor(bench: Bench, fd: number, context: TlsContext, isClient: boolean) {
    const tls = new TlsConnection(context, fd, isClient ? podServerName('b', trustDomain) : undefined)
    this.connection = new SideConnection(1, fd, tls, isClient ? name : undefined, (report) =>
      this.reports.push(report),
    )
    for (const port of this.connection.ports) bench.loop.watch(this, port)
    bench.loop.stir(this)
  }

  turn(): 'waiting' | 'more' | 'finished' {
    this.turns++
    const turn = this.outcome === undefined ? this.connection.turn() : 'finished'
    if (turn === 'finished') this.outcome ??= this.connection.outcome()
    return turn
  }

  has(type: Report['type']): boolean {
    return this.reports.some((report) => report.type === type)
  }
}

/** What an app says, and hears until the other's end; it says and reads so many bytes at a time. */
class App {
  readonly heard = createHash('sha256')
  heardBytes = 0
  isOver = false
  readonly #fd: number
  readonly #bytes: Buffer
  readonly #step: number
  readonly #into: Buffer
  #said = 0
  #hasEnded = false

  constructor(fd: number, bytes: Buffer, step: number) {
    this.#fd = fd
    this.#bytes = bytes
    this.#step = step
    this.#into = Buffer.alloc(step)
  }

  turn(mayEnd = true): void {
    const part = this.#bytes.subarray(this.#said, this.#said + this.#step)
    if (part.length > 0) this.#said += Math.max(0, send(this.#fd, part, part.length, sendFlags))
    else if (mayEnd && !this.#hasEnded) {
      this.#hasEnded = true
      shutdown(this.#fd, SHUT_WR)
    }
    if (this.isOver) return
    const count = recv(this.#fd, this.#into, this.#step, recvFlags)
    if (count === 0) this.isOver = true
    if (count <= 0) return
    this.heard.update(this.#into.subarray(0, count))
    this.heardBytes += count
  }
}

/** Both ends, agreed, each with an app behind it. */
async function agreed(bench: Bench) {
  const { a, b } = await contextsOf('a', 'b')
  const [clientFd, serverFd] = await descriptors()
  const [client, server] = [new End(bench, clientFd, a, true), new End(bench, serverFd, b, false)]
  bench.run(() => server.has('named'))
  server.connection.accept()
  bench.loop.stir(server)
  bench.run(() => client.has('named'))
  client.connection.accept()
  bench.loop.stir(client)
  bench.run(() => server.has('agreed'))
  const apps: number[] = []
  const ours = [clientFd, serverFd]
  for (const end of [client, server]) {
    const [app, behind] = await descriptors()
    apps.push(app)
    for (const port of [end.connection.feed(behind, false), end.connection.drain(dup(behind))]) {
      if (port === undefined) continue
      ours.push(port.fd)
      bench.loop.watch(end, port)
    }
    bench.loop.stir(end)
  }
  return {
    client,
    server,
    apps: apps as [number, number],
    end: () => {
      for (const { connection } of [client, server]) connection.close()
      for (const fd of [...ours, ...apps]) close(fd)
    },
  }
}

const hashOf = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex')

describe('a side connection', () => {
  it.each([
    ['a few bytes each way', 7, 6, 100],
    ['nothing at all', 0, 0, 100],
    ['bulk one way', 5_000_000, 1, 65_536],
    ['bulk the other way', 1, 5_000_000, 65_536],
    ['bulk both ways', 3_000_000, 3_000_000, 65_536],
    ['bulk in odd pieces', 700_001, 300_007, 9_973],
  ])('carries %s, and both ends', async (_what, up, down, step) => {
    const bench = new Bench()
    const { client, server, apps, end } = await agreed(bench)
    const bytes: [Buffer, Buffer] = [randomBytes(up), randomBytes(down)]
    const [near, far] = [new App(apps[0], bytes[0], step), new App(apps[1], bytes[1], step)]
    bench.run(() => {
      near.turn()
      far.turn()
      return near.isOver && far.isOver && client.outcome !== undefined && server.outcome !== undefined
    })
    expect([far.heardBytes, far.heard.digest('hex')]).toEqual([up, hashOf(bytes[0])])
    expect([near.heardBytes, near.heard.digest('hex')]).toEqual([down, hashOf(bytes[1])])
    expect(client.outcome).toEqual({ type: 'finished', id: 1, aToB: up, bToA: down })
    expect(server.outcome).toEqual({ type: 'finished', id: 1, aToB: down, bToA: up })
    end()
  })

  it('passes an end on that comes with the last bytes, while the other direction goes on', async () => {
    const bench = new Bench()
    const { client, server, apps, end } = await agreed(bench)
    const [near, far] = [
      new App(apps[0], Buffer.from('request'), 100),
      new App(apps[1], Buffer.from('answer'), 100),
    ]
    bench.run(() => {
      near.turn()
      far.turn(false)
      return far.isOver && near.heardBytes === 6
    })
    expect([far.heardBytes, near.isOver, client.outcome, server.outcome]).toEqual([
      7,
      false,
      undefined,
      undefined,
    ])
    bench.run(() => {
      far.turn()
      near.turn()
      return near.isOver && client.outcome !== undefined && server.outcome !== undefined
    })
    end()
  })

  it('takes no turns while it waits to be fed', async () => {
    const bench = new Bench()
    const { a, b } = await contextsOf('a', 'b')
    const [clientFd, serverFd] = await descriptors()
    new End(bench, clientFd, a, true)
    const server = new End(bench, serverFd, b, false)
    bench.run(() => server.has('named'))
    server.connection.accept()
    server.connection.drain(undefined)
    bench.loop.stir(server)
    bench.turn(3)
    const before = server.turns
    bench.turn(10)
    expect(server.turns - before).toBe(0)
    close(clientFd)
    close(serverFd)
  })

  it('says why a server does not like its certificate', async () => {
    const bench = new Bench()
    const [stranger, server] = await withAuthorities(async (one, two) => {
      if (one === undefined || two === undefined) throw new Error('there are none')
      const good = await identityOf(one, 'b')
      const { trustBundle } = good
      return [new TlsContext({ ...(await identityOf(two, 'a')), trustBundle }), new TlsContext(good)] as const
    })
    const [clientFd, serverFd] = await descriptors()
    const [dialler, acceptor] = [
      new End(bench, clientFd, stranger, true),
      new End(bench, serverFd, server, false),
    ]
    bench.run(() => dialler.outcome !== undefined && acceptor.outcome !== undefined)
    expect(dialler.outcome).toMatchObject({ broke: 'b', error: 'the peer says: unknown CA' })
    expect(acceptor.outcome).toMatchObject({ broke: 'b', error: 'unable to get local issuer certificate' })
    close(clientFd)
    close(serverFd)
  })
})
