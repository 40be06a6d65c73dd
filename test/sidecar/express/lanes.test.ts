import { afterEach, beforeAll, describe, expect, it } from 'vitest'
import {
  ANSWER,
  CREDIT,
  DATA,
  FIN,
  GOAWAY,
  HELLO,
  OPEN,
  PING,
  PONG,
  RESET,
} from '../../../sidecar/express/frames.ts'
import { FORBIDDEN, type LaneRoute, REFUSED, STOPPING } from '../../../sidecar/express/messages.ts'
import {
  close,
  recv,
  recvFlags,
  SHUT_WR,
  SOL_SOCKET,
  send,
  sendFlags,
  setsockopt,
  shutdown,
} from '../../../sidecar/shared/pump/libc.ts'
import type { TlsContext } from '../../../sidecar/shared/pump/openssl.ts'
import { congestionControlOf, setCongestionControl } from '../../../sidecar/shared/pump/tcp.ts'
import { SeededBytes } from '../../conformance/traffic.ts'
import { Seeded } from '../../server/seeded.ts'
import { App, Bench, contextsOf, descriptors, frame, Peer, Pod, u32 } from './bench.ts'

let contexts: Record<'near' | 'far', TlsContext>
let app: App
let closed: App
const scratch = Buffer.alloc(256 * 1024)
const fds: number[] = []
const SO_RCVBUF = 8

beforeAll(async () => {
  contexts = await contextsOf('near', 'far')
  app = await App.listen()
  closed = await App.listen()
  closed.close()
  return () => app.close()
})

afterEach(() => {
  for (const fd of fds.splice(0)) close(fd)
})

const served = () =>
  new Map([
    [app.key, 'app'],
    [closed.key, 'closed'],
  ])
const open = (key = app.key, window = 1024 * 1024) => Buffer.concat([u32(window), Buffer.from(key, 'latin1')])

/** A pod, and a peer that has dialled it. */
async function dialled(
  ends?: [number, number],
  route?: LaneRoute,
): Promise<{ bench: Bench; pod: Pod; peer: Peer }> {
  const [ours, theirs] = ends ?? (await descriptors())
  const bench = new Bench()
  const pod = new Pod(bench.loop, contexts.far, served())
  pod.addLane(ours, undefined, route)
  const peer = Peer.on(bench, theirs, contexts.near, 'far')
  bench.run(() => peer.hear().equals(frame(HELLO, 0, [1])))
  peer.heard = Buffer.alloc(0)
  return { bench, pod, peer }
}

/** A pod that has dialled, and the peer that it has met. */
async function dialler(): Promise<{ bench: Bench; pod: Pod; peer: Peer }> {
  const [ours, theirs] = await descriptors()
  const bench = new Bench()
  const pod = new Pod(bench.loop, contexts.near, new Map())
  pod.addLane(ours, 'far')
  return { bench, pod, peer: Peer.on(bench, theirs, contexts.far) }
}

/** A pod that has dialled, and the peer whose lane it may use. */
async function met() {
  const { bench, pod, peer } = await dialler()
  peer.say(frame(HELLO, 0, [1]))
  bench.run(() => pod.ups === 1)
  const lane = pod.house.groups.pick('peer')
  if (lane === undefined) throw new Error('there is no lane')
  return { bench, pod, peer, lane }
}

/** Two pods with a lane, and a connection on it: its app's end here, and there. */
async function joined() {
  const [ours, theirs] = await descriptors()
  const [captured, near] = await descriptors()
  const bench = new Bench()
  const [dialler, acceptor] = [
    new Pod(bench.loop, contexts.near, new Map()),
    new Pod(bench.loop, contexts.far, served()),
  ]
  acceptor.addLane(theirs)
  dialler.addLane(ours, 'far')
  bench.run(() => dialler.ups === 1)
  const lane = dialler.house.groups.pick('peer')
  if (lane === undefined) throw new Error('there is no lane')
  dialler.dial(captured, app.key, lane)
  let far = -1
  bench.run(() => {
    if (far < 0) far = app.accept()
    return far >= 0
  })
  fds.push(near, far)
  return { bench, dialler, acceptor, near, far }
}

/** What is there to be read, and whether that was all. */
function receive(fd: number, into: Buffer[], most = scratch.length): boolean {
  const count = recv(fd, scratch, most, recvFlags)
  if (count > 0) into.push(Buffer.from(scratch.subarray(0, count)))
  return count === 0
}

/** The app at the far end of the only stream sends until nothing is taken any more. */
function fillLane(bench: Bench): void {
  const block = Buffer.alloc(200_000)
  let [far, idle] = [-1, 0]
  bench.run(() => {
    if (far < 0) far = app.accept()
    idle = far < 0 || send(far, block, block.length, sendFlags) > 0 ? 0 : idle + 1
    return idle > 20
  })
  fds.push(far)
}

describe('a lane', () => {
  it('carries bytes exactly, each direction to its own end', async () => {
    const { bench, dialler, acceptor, near, far } = await joined()
    const bytes = new SeededBytes(1).block(3_000_001)
    const got: Buffer[] = []
    let sent = 0
    bench.run(() => {
      if (sent < bytes.length)
        sent += Math.max(0, send(near, bytes.subarray(sent), bytes.length - sent, sendFlags))
      if (sent === bytes.length) shutdown(near, SHUT_WR)
      return receive(far, got)
    })
    expect(Buffer.concat(got).equals(bytes)).toBe(true)
    send(far, Buffer.from('thanks'), 6, sendFlags)
    shutdown(far, SHUT_WR)
    const answer: Buffer[] = []
    bench.run(() => receive(near, answer))
    expect(Buffer.concat(answer).toString()).toBe('thanks')
    bench.run(() => dialler.open + acceptor.open === 0)
    expect([dialler.endings, acceptor.endings]).toEqual([['closed'], ['closed']])
    expect(dialler.around.windows.granted + acceptor.around.windows.granted).toBe(0)
  })

  it('that goes away leaves the app what had come for it, though the app is slow', async () => {
    const { bench, dialler, acceptor, near, far } = await joined()
    shutdown(far, SHUT_WR)
    const sent: Buffer[] = []
    const bytes = new SeededBytes(2)
    // More than the sockets take, so that some waits with the acceptor.
    let idle = 0
    bench.run(() => {
      const block = bytes.block(60_000)
      const count = send(near, block, block.length, sendFlags)
      if (count > 0) sent.push(block.subarray(0, count))
      idle = count > 0 ? 0 : idle + 1
      return idle > 20
    })
    shutdown(near, SHUT_WR)
    const got: Buffer[] = []
    bench.run(() => {
      receive(far, got, 16_384) // as little as lets it go on
      return dialler.open === 0
    })
    expect(acceptor.open).toBe(1)
    dialler.house.retire(() => true)
    bench.run(() => dialler.overs.length + acceptor.overs.length === 2)
    bench.run(() => receive(far, got))
    expect(Buffer.concat(got).equals(Buffer.concat(sent))).toBe(true)
    bench.run(() => acceptor.open === 0)
    expect(acceptor.endings).toEqual(['closed'])
  })

  it('is over at both ends before a stopping pod is done', async () => {
    const { bench, dialler, acceptor, near, far } = await joined()
    const got: Buffer[] = []
    send(near, Buffer.from('begun'), 5, sendFlags)
    bench.run(() => receive(far, got) || got.length > 0)
    let done = false
    dialler.house.abort(() => {
      done = true
    })
    bench.run(() => done)
    expect(dialler.overs).toHaveLength(1)
    expect([dialler.endings, acceptor.endings]).toEqual([['reset by peer'], ['reset by peer']])
    expect([near, far].map((fd) => recv(fd, scratch, 1, recvFlags))).toEqual([-1, -1])
  })
})

describe('a peer that dials', () => {
  it('is told why it gets no stream', async () => {
    const { bench, pod, peer } = await dialled()
    const elsewhere = Buffer.from([0, 22, 127, 0, 0, 1]).toString('latin1')
    peer.say(frame(OPEN, 1, open(elsewhere)), frame(OPEN, 2, open(closed.key)))
    const answers = [FORBIDDEN, REFUSED].map((why, i) => frame(ANSWER, i + 1, [why, 0, 0, 0, 0]))
    bench.run(() => peer.hear().equals(Buffer.concat(answers)))
    pod.house.drain()
    peer.say(frame(OPEN, 3, open()))
    const last = Buffer.concat([...answers, frame(GOAWAY, 0), frame(ANSWER, 3, [STOPPING, 0, 0, 0, 0])])
    bench.run(() => peer.hear().equals(last))
    expect(pod.endings).toEqual(['forbidden', 'refused', 'stopping'])
    peer.close()
  })

  it.each<[string, () => Buffer[], string]>([
    ['sends what is no frame', () => [frame(10, 1)], 'the peer sends what is no frame'],
    ['greets as an acceptor', () => [frame(HELLO, 0, [1])], 'the peer breaks the protocol'],
    [
      'opens a stream twice',
      () => [frame(OPEN, 1, open()), frame(OPEN, 1, open())],
      'the peer breaks the protocol',
    ],
    [
      'opens streams backwards',
      () => [frame(OPEN, 2, open()), frame(OPEN, 1, open())],
      'the peer breaks the protocol',
    ],
    ['speaks of a stream that never was', () => [frame(DATA, 7, [1])], 'the peer breaks the protocol'],
    [
      'sends before it is answered',
      () => [frame(OPEN, 1, open()), frame(DATA, 1, [1])],
      'the peer sends before it is answered',
    ],
    [
      'grants before it is answered',
      () => [frame(OPEN, 1, open()), frame(CREDIT, 1, u32(1))],
      'the peer breaks the protocol',
    ],
    [
      'floods with what is forbidden',
      () => Array.from({ length: 2_100 }, (_, i) => frame(OPEN, i + 1, open('\0\x16\x7f\0\0\x01'))),
      'the peer asks for too much',
    ],
    [
      'opens and resets, again and again',
      () =>
        Array.from({ length: 4_200 }, (_, i) => (i % 2 === 0 ? frame(OPEN, i + 1, open()) : frame(RESET, i))),
      'the peer asks for too much',
    ],
  ])('loses its lane when it %s', async (_title, frames, why) => {
    const { bench, pod, peer } = await dialled()
    peer.say(...frames())
    bench.run(() => pod.overs.length > 0)
    expect(pod.overs).toEqual([why])
    expect(pod.open).toBe(0)
    expect(pod.around.windows.granted).toBe(0)
    peer.close()
    for (let fd = app.accept(); fd >= 0; fd = app.accept()) close(fd)
  })

  it.each<[string, () => Buffer[], string]>([
    ['sends after the end', () => [frame(FIN, 1), frame(DATA, 1, [1])], 'the peer sends more than it may'],
    ['ends twice', () => [frame(FIN, 1), frame(FIN, 1)], 'the peer breaks the protocol'],
    ['grants without measure', () => [frame(CREDIT, 1, u32(0xffff_ffff))], 'the peer breaks the protocol'],
    ['answers', () => [frame(ANSWER, 1, [0, 0, 0, 0, 9])], 'the peer breaks the protocol'],
  ])('loses its lane, and no other, when on a stream it %s', async (_title, frames, why) => {
    const { bench, pod, peer } = await dialled()
    const [ours, theirs] = await descriptors()
    pod.addLane(ours)
    const other = Peer.on(bench, theirs, contexts.near, 'far')
    for (const p of [peer, other]) {
      p.heard = Buffer.alloc(0)
      p.say(frame(OPEN, 1, open()))
      bench.run(() => p.hear().length >= 13)
    }
    peer.say(...frames())
    bench.run(() => pod.overs.length > 0)
    expect(pod.overs).toEqual([why])
    expect(pod.open).toBe(1)
    fds.push(app.accept(), app.accept())
    other.heard = Buffer.alloc(0)
    other.say(frame(DATA, 1, Buffer.from('still here')), frame(FIN, 1))
    const got: Buffer[] = []
    bench.run(() => receive(fds.at(-1) ?? -1, got))
    expect(Buffer.concat(got).toString()).toBe('still here')
    for (const p of [peer, other]) p.close()
  })

  it('loses its lane when it sends more than the window, which is when the app takes no more', async () => {
    const { bench, pod, peer } = await dialled()
    peer.say(frame(OPEN, 1, open()))
    const block = frame(DATA, 1, Buffer.alloc(60_000))
    bench.run(() => peer.hear().length >= 13)
    bench.run(() => {
      if (pod.overs.length === 0) peer.say(block)
      return pod.overs.length > 0
    })
    expect(pod.overs).toEqual(['the peer sends more than it may'])
    fds.push(app.accept())
    peer.close()
  })

  it('and reads slowly gets small talk before most of the bulk that waits', async () => {
    const { bench, peer } = await dialled()
    setsockopt(peer.fd, SOL_SOCKET, SO_RCVBUF, Buffer.from(Uint32Array.of(16_384).buffer), 4)
    const streams = [1, 2, 3, 4, 5]
    peer.say(...streams.map((stream) => frame(OPEN, stream, open(app.key, 0x7fff_ffff))))
    const apps: number[] = []
    bench.run(() => {
      const fd = app.accept()
      if (fd >= 0) apps.push(fd)
      return apps.length === streams.length
    })
    fds.push(...apps)
    const [talk = -1, ...bulk] = apps
    const block = Buffer.alloc(200_000)
    let reads = 0
    const passSome = () => {
      for (const fd of bulk) send(fd, block, block.length, sendFlags)
      if (reads++ % 20 === 0) peer.hear(8_000)
    }
    const slowUntil = performance.now() + 2_500
    bench.run(() => {
      passSome()
      return performance.now() > slowUntil
    })
    peer.heard = Buffer.alloc(0)
    send(talk, Buffer.from('x'), 1, sendFlags)
    const said = frame(DATA, 1, Buffer.from('x'))
    bench.run(() => {
      passSome()
      return peer.heard.includes(said)
    })
    expect(peer.heard.indexOf(said)).toBeLessThan(350_000)
    peer.close()
  })

  it.each<{ route: LaneRoute; unpaced: boolean }>([
    { route: 'direct', unpaced: true },
    { route: 'punched', unpaced: false },
    { route: 'relayed', unpaced: false },
  ])('has a full lane by a $route path unpaced: $unpaced', async ({ route, unpaced }) => {
    const [ours, theirs] = await descriptors()
    setCongestionControl(ours, 'bbr')
    const before = congestionControlOf(ours) // a kernel without BBR keeps its own
    const { bench, peer } = await dialled([ours, theirs], route)
    peer.say(frame(OPEN, 1, open(app.key, 0x7fff_ffff)))
    fillLane(bench)
    expect(congestionControlOf(ours)).toBe(unpaced && before === 'bbr' ? 'reno' : before)
    peer.close()
  })

  it('and never reads holds up nobody, and is cut off when answers to it pile up', async () => {
    const { bench, pod, peer } = await dialled()
    peer.say(frame(OPEN, 1, open(app.key, 0x7fff_ffff)))
    fillLane(bench)
    peer.say(frame(PING, 0))
    bench.turn(10)
    expect(pod.overs).toEqual([])
    const pings = Buffer.concat(Array.from({ length: 4_000 }, () => frame(PING, 0)))
    let said = 0
    bench.run(() => {
      if (pod.overs.length === 0 && said++ < 100) peer.say(pings)
      return pod.overs.length > 0
    })
    expect(pod.overs).toEqual(['the peer takes nothing'])
    expect(pod.open).toBe(0)
    peer.close()
  })
})

describe('a peer that was dialled', () => {
  it.each<[string, () => Buffer[], string]>([
    ['greets twice', () => [frame(HELLO, 0, [1]), frame(HELLO, 0, [1])], 'the peer breaks the protocol'],
    ['is of another version', () => [frame(HELLO, 0, [2])], 'the peer breaks the protocol'],
    ['opens a stream', () => [frame(HELLO, 0, [1]), frame(OPEN, 1, open())], 'the peer breaks the protocol'],
    ['answers what nobody asked', () => [frame(ANSWER, 1, [0, 0, 0, 0, 9])], 'the peer breaks the protocol'],
  ])('loses its lane when it %s', async (_title, frames, why) => {
    const { bench, pod, peer } = await dialler()
    peer.say(...frames())
    bench.run(() => pod.overs.length > 0)
    expect(pod.overs).toEqual([why])
    expect(pod.house.groups.pick('peer')).toBeUndefined()
    peer.close()
  })

  it('is not used when it is another pod than the one that is meant', async () => {
    const [ours, theirs] = await descriptors()
    const bench = new Bench()
    const pod = new Pod(bench.loop, contexts.near, new Map())
    const impostor = new Pod(bench.loop, contexts.near, served())
    pod.addLane(ours, 'far')
    impostor.addLane(theirs)
    bench.run(() => pod.overs.length > 0)
    expect(pod.overs).toEqual(['hostname mismatch'])
    expect(pod.ups).toBe(0)
    bench.run(() => impostor.overs.length > 0)
  })

  it('and is silent leaves connections to be made elsewhere, until it is heard again', async () => {
    const { bench, pod, peer, lane } = await met()
    const [captured, near] = await descriptors()
    fds.push(near)
    pod.dial(captured, app.key, lane)
    bench.run(() => pod.punts.length > 0)
    expect(pod.punts).toEqual([true])
    expect(pod.house.groups.pick('peer')).toBeUndefined()
    expect(pod.overs).toEqual([])
    bench.run(() => peer.hear().includes(frame(RESET, 1)))
    peer.say(frame(PONG, 0))
    bench.run(() => pod.house.groups.pick('peer') === lane)
    expect(pod.open).toBe(0)
  })

  it('and lives may take its time', async () => {
    const { bench, pod, peer, lane } = await met()
    const [captured, near] = await descriptors()
    fds.push(near)
    const after = performance.now() + lane.pulse.patienceMs + 500
    pod.dial(captured, app.key, lane)
    bench.run(() => peer.hear().includes(frame(PING, 0)))
    peer.say(frame(PONG, 0))
    bench.run(() => performance.now() > after)
    expect(pod.punts).toEqual([])
    peer.say(frame(ANSWER, 1, [0, 0, 0, 0, 9]), frame(DATA, 1, Buffer.from('late')))
    const got: Buffer[] = []
    bench.run(() => receive(near, got) || got.length > 0)
    expect(got.join('')).toBe('late')
  })

  it('and whose lane is retired before it answers leaves the connection to be made elsewhere', async () => {
    const { bench, pod, peer, lane } = await met()
    const [captured, near] = await descriptors()
    fds.push(near)
    pod.dial(captured, app.key, lane)
    peer.say(frame(PONG, 0), frame(GOAWAY, 0))
    bench.run(() => pod.punts.length > 0)
    expect(pod.punts, 'no failure of the endpoint').toEqual([false])
    bench.run(() => peer.hear().includes(frame(RESET, 1)))
    peer.close()
  })

  it('and goes away before it answers leaves the connection to be made elsewhere, once', async () => {
    const { bench, pod, peer, lane } = await met()
    const [captured, near] = await descriptors()
    fds.push(near)
    pod.dial(captured, app.key, lane)
    bench.run(() => peer.hear().length > 0)
    peer.close()
    bench.run(() => pod.overs.length > 0)
    expect(pod.punts).toEqual([false])
    expect(pod.open).toBe(0)
    expect(pod.endings).toEqual([])
  })
})

describe('whatever a peer says', () => {
  const random = new Seeded(20_261_125)
  const any = (): Buffer => {
    const type = random.pick([
      OPEN,
      OPEN,
      OPEN,
      ANSWER,
      DATA,
      DATA,
      DATA,
      FIN,
      RESET,
      CREDIT,
      CREDIT,
      PING,
      GOAWAY,
      HELLO,
      10,
    ])
    const payloads: Record<number, () => Buffer> = {
      [OPEN]: () =>
        open(random.pick([app.key, app.key, closed.key, '\0\x16\x7f\0\0\x01']), random.below(100_000)),
      [ANSWER]: () => Buffer.concat([Buffer.from([random.below(12)]), u32(random.below(100_000))]),
      [DATA]: () => random.bytes(1 + random.below(3_000)),
      [CREDIT]: () => u32(random.below(1_000_000)),
      [HELLO]: () => Buffer.from([1]),
    }
    return frame(type, random.below(8), payloads[type]?.() ?? Buffer.alloc(0))
  }

  /** Says it, goes away at some time, and looks at what is left. */
  const survives = ({ bench, pod, peer }: Awaited<ReturnType<typeof dialled>>) => {
    for (let i = random.below(20); i >= 0 && pod.overs.length === 0; i--) {
      peer.say(any())
      bench.turn(random.below(3))
      fds.push(...[app.accept()].filter((fd) => fd >= 0))
    }
    peer.close()
    bench.run(() => pod.overs.length === 1)
    for (const fd of fds.splice(0)) close(fd)
    bench.run(() => pod.open === 0)
    expect(pod.around.ledger.owned()).toEqual([])
    expect(pod.around.windows.granted).toBe(0)
  }

  it('to a pod that it has dialled, the lane ends with nothing left', async () => {
    for (let i = 0; i < 200; i++) survives(await dialled())
  }, 60_000)

  it('to a pod that has dialled it, the lane ends with nothing left', async () => {
    for (let i = 0; i < 200; i++) {
      const met = await dialler()
      const { bench, pod, peer } = met
      peer.say(frame(HELLO, 0, [1]))
      bench.run(() => pod.ups === 1)
      for (let stream = 1; stream < 6; stream++) {
        const lane = pod.house.groups.pick('peer')
        const [captured, near] = await descriptors()
        fds.push(near)
        if (lane === undefined) throw new Error('there is no lane')
        pod.dial(captured, app.key, lane)
        if (random.below(3) > 0) peer.say(frame(ANSWER, stream, [0, 0, 1, 0, 0]))
        send(near, Buffer.from('hello'), 5, sendFlags)
      }
      survives(met)
    }
  }, 60_000)
})
