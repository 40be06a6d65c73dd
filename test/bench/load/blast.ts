// Sends or takes bulk on many connections at little cost of its own, so that what is measured is what is between.
//   node blast.ts source|sink; commands by standard input, as main.ts and cases/relay.ts send them.
import { connect, createServer, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import koffi from 'koffi'
import { descriptorOf, setReading } from '#shared/descriptor.ts'
import {
  EAGAIN,
  EPOLLIN,
  EPOLLOUT,
  Epoll,
  epoll,
  errno,
  SHUT_WR,
  send,
  sendFlags,
  shutdown,
} from '#shared/pump/libc.ts'
import { answer, nextCommand } from './lines.ts'
import { type MeshOptions, type MeshPod, openMeshClient } from './mesh-client.ts'

interface Open {
  /** A source dials these. */
  dial?: { host: string; port: number; count: number }
  /** A sink listens here and expects so many. */
  listen?: { port: number; count: number }
  /** Through the relay: `count` connections of each of our pods to the peer of the same index. */
  relay?: Pick<MeshOptions, 'server' | 'trustBundleFile'> & {
    pods: MeshPod[]
    peers?: string[]
    count: number
  }
}

interface Run {
  seconds: number
}

const [role] = process.argv.slice(2)
const MSG_TRUNC = 0x20
const MSG_DONTWAIT = 0x40
const blockSize = 256 * 1024
// With MSG_TRUNC the kernel throws the bytes of a TCP socket away without copying them.
const discard = koffi.load(null).func('int64_t recv(int fd, void *buffer, size_t length, int flags)') as (
  fd: number,
  buffer: null,
  length: number,
  flags: number,
) => number

async function openAll({ dial, listen, relay }: Open): Promise<Duplex[]> {
  if (dial !== undefined) return Promise.all(Array.from({ length: dial.count }, () => dialOne(dial)))
  if (listen !== undefined) {
    const accepted = expectStreams(listen.count)
    const server = createServer({ noDelay: true }, accepted.take).listen(listen.port, () =>
      answer('listening'),
    )
    return accepted.all.finally(() => server.close())
  }
  if (relay === undefined) throw new Error('nothing to open')
  const { pods, peers, count, ...options } = relay
  const accepted = expectStreams(peers === undefined ? pods.length * count : 0)
  const clients = await Promise.all(
    pods.map((pod) => openMeshClient(pod, { ...options, serve: accepted.take })),
  )
  for (const { channel } of clients) await channel.untilUp(20_000)
  if (peers === undefined) {
    answer('listening')
    return accepted.all
  }
  const dials = clients.flatMap((client, i) =>
    Array.from({ length: count }, () => client.relay.dial(peers[i] ?? '')),
  )
  return Promise.all(dials)
}

async function dialOne({ host, port }: { host: string; port: number }): Promise<Socket> {
  const socket = connect({ host, port, noDelay: true })
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  socket.once('connect', resolve)
  socket.once('error', reject)
  await promise
  return socket
}

function expectStreams(count: number): { all: Promise<Duplex[]>; take: (stream: Duplex) => void } {
  const streams: Duplex[] = []
  const { promise, resolve } = Promise.withResolvers<Duplex[]>()
  const take = (stream: Duplex) => {
    streams.push(stream)
    if (streams.length === count) resolve(streams)
  }
  return { all: promise, take }
}

/** Blocks this process until the time is over or every sink has seen its end. Returns bytes and seconds. */
function blast(streams: readonly Duplex[], { seconds }: Run): { bytes: number; seconds: number } {
  const fds = new Set(streams.map((stream) => descriptorOf(stream) ?? -1))
  for (const stream of streams) setReading(stream, false)
  const poll = new Epoll(epoll())
  const block = Buffer.alloc(blockSize, 0x5a)
  const start = performance.now()
  let bytes = 0
  let last = start
  const work = (fd: number): void => {
    for (;;) {
      const n =
        role === 'source'
          ? send(fd, block, blockSize, sendFlags)
          : discard(fd, null, blockSize * 4, MSG_DONTWAIT | MSG_TRUNC)
      if (n > 0) bytes += n
      else {
        if (n === 0 || errno() !== EAGAIN) fds.delete(fd)
        break
      }
      if (role === 'source' && performance.now() > start + seconds * 1_000) break
    }
    last = performance.now()
  }
  for (const fd of fds) poll.add(fd)
  const until = start + seconds * 1_000 + (role === 'source' ? 0 : 10_000)
  while (fds.size > 0 && performance.now() < until) {
    poll.wait(100, (fd, events) => {
      if ((events & (role === 'source' ? EPOLLOUT : EPOLLIN)) !== 0 && fds.has(fd)) work(fd)
    })
  }
  for (const fd of fds) shutdown(fd, SHUT_WR)
  return { bytes, seconds: (last - start) / 1_000 }
}

const open = await nextCommand<Open>()
if (open === undefined) process.exit(0)
const streams = await openAll(open)
for (const stream of streams) stream.on('error', () => undefined)
answer({ open: streams.length })
const run = await nextCommand<Run>()
if (run !== undefined) {
  answer(blast(streams, run))
  await nextCommand() // closing what is carried is for when both sides have counted
}
process.exit(0)
