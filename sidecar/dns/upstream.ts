import { randomInt } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { connect } from 'node:net'
import { type DecodedPacket, decode, encode, type Question, RECURSION_DESIRED } from 'dns-packet'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import type { Reply, ResponseCode } from './answer.ts'
import { maxTcpMessage, optRecord } from './message.ts'

export interface UpstreamOptions {
  /** In the order of resolv.conf. */
  servers: readonly string[]
  port: number
  /** How long one server may take, in ms; resolvers of apps give up after 5 s in all. */
  serverDeadlineMs: number
  onFailure: (server: string, why: string) => void
}

/** A server that did not answer is asked last for so long, in ms. */
const restMs = 10_000

/** Asks the servers of resolv.conf, one after the other, until one gives an answer that says something. */
export class Upstream {
  readonly #options: UpstreamOptions
  readonly #restsUntil = new Map<string, number>()

  constructor(options: UpstreamOptions) {
    this.#options = options
  }

  /** Rejects when no server answers. */
  async ask(question: Question, signal: AbortSignal): Promise<Reply> {
    const { servers, onFailure } = this.#options
    const now = performance.now()
    const rests = (server: string) => (this.#restsUntil.get(server) ?? 0) > now
    const order = [...servers.filter((s) => !rests(s)), ...servers.filter(rests)]
    let last: unknown = new EdgeMeshError('unreachable', 'Cannot resolve: resolv.conf names no server.')
    for (const server of order) {
      if (signal.aborted) break
      try {
        const reply = await this.#askOne(server, question, signal)
        this.#restsUntil.delete(server)
        if (reply.rcode === 'NOERROR' || reply.rcode === 'NXDOMAIN') return reply
        last = new EdgeMeshError('unreachable', `Cannot resolve: ${server} answers ${reply.rcode}.`)
      } catch (error) {
        this.#restsUntil.set(server, performance.now() + restMs)
        onFailure(server, sentenceOf(error))
        last = error
      }
    }
    throw last
  }

  async #askOne(server: string, question: Question, signal: AbortSignal): Promise<Reply> {
    const id = randomInt(65_536)
    const query = encode({
      type: 'query',
      id,
      flags: RECURSION_DESIRED,
      questions: [question],
      additionals: [optRecord],
    })
    const matches = (packet: DecodedPacket) =>
      packet.type === 'response' && packet.id === id && sameQuestion(packet, question)
    const deadline = AbortSignal.any([signal, AbortSignal.timeout(this.#options.serverDeadlineMs)])
    const overUdp = await askUdp(server, this.#options.port, query, matches, deadline)
    if (!overUdp.flag_tc) return replyOf(overUdp)
    return replyOf(await askTcp(server, this.#options.port, query, matches, deadline))
  }
}

type Matches = (packet: DecodedPacket) => boolean

/** A socket of its own for each question: the port is as hard to guess as the id. Others' datagrams are ignored. */
function askUdp(
  host: string,
  port: number,
  query: Buffer,
  matches: Matches,
  signal: AbortSignal,
): Promise<DecodedPacket> {
  const { promise, resolve, reject } = Promise.withResolvers<DecodedPacket>()
  const socket = createSocket(host.includes(':') ? 'udp6' : 'udp4')
  socket.on('error', reject)
  socket.on('message', (message) => {
    const packet = tryDecode(message)
    if (packet !== undefined && matches(packet)) resolve(packet)
  })
  // A connected socket takes datagrams of this server only, and learns of ICMP errors at once.
  const onConnected = (error?: Error) => {
    if (error) reject(error)
    else if (!signal.aborted) socket.send(query)
  }
  socket.connect(port, host, onConnected as () => void)
  return finish(promise, reject, signal, host, () => socket.close())
}

function askTcp(
  host: string,
  port: number,
  query: Buffer,
  matches: Matches,
  signal: AbortSignal,
): Promise<DecodedPacket> {
  const { promise, resolve, reject } = Promise.withResolvers<DecodedPacket>()
  const socket = connect({ host, port, noDelay: true })
  let received = Buffer.alloc(0)
  socket.on('error', reject)
  socket.on('close', () => reject(new Error('the connection was closed without an answer')))
  socket.on('data', (chunk) => {
    received = Buffer.concat([received, chunk])
    const length = received.length < 2 ? maxTcpMessage : received.readUInt16BE(0)
    if (received.length < length + 2) return
    const packet = tryDecode(received.subarray(2, length + 2))
    if (packet !== undefined && matches(packet)) resolve(packet)
    else reject(new Error('the answer is not to our question'))
  })
  const framed = Buffer.alloc(2 + query.length)
  framed.writeUInt16BE(query.length)
  query.copy(framed, 2)
  socket.write(framed)
  return finish(promise, reject, signal, host, () => socket.destroy())
}

function finish<T>(
  promise: Promise<T>,
  reject: (error: unknown) => void,
  signal: AbortSignal,
  server: string,
  close: () => void,
): Promise<T> {
  const onAbort = () => reject(new EdgeMeshError('timeout', `Cannot resolve: ${server} does not answer.`))
  signal.addEventListener('abort', onAbort, { once: true })
  if (signal.aborted) onAbort()
  return promise.finally(() => {
    signal.removeEventListener('abort', onAbort)
    close()
  })
}

function tryDecode(message: Buffer): DecodedPacket | undefined {
  try {
    return decode(message)
  } catch {
    return undefined // not an answer to anything; the true one may still come
  }
}

function sameQuestion(packet: DecodedPacket, { name, type }: Question): boolean {
  const [asked] = packet.questions ?? []
  return asked?.type === type && asked.name.toLowerCase() === name.toLowerCase().replace(/\.$/, '')
}

function replyOf(packet: DecodedPacket): Reply {
  const { answers = [], authorities = [], additionals = [] } = packet
  return {
    rcode: (packet as DecodedPacket & { rcode: ResponseCode }).rcode,
    answers,
    authorities,
    additionals: additionals.filter((a) => a.type !== 'OPT'), // EDNS is between two neighbours (RFC 6891)
  }
}
