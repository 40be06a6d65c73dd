import { createSocket, type Socket as UdpSocket } from 'node:dgram'
import { createServer, type Server, type Socket } from 'node:net'
import type { Answer, Question } from 'dns-packet'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import type { Logger } from '#shared/log.ts'
import type { Metrics } from '#shared/metrics.ts'
import {
  answerHeadless,
  type Decision,
  decide,
  found,
  type NameSettings,
  type NameView,
  none,
  type Reply,
} from './answer.ts'
import { AnswerCache } from './cache.ts'
import { answerTo, EncodedAnswers } from './encoded.ts'
import { encodeReply, maxTcpMessage, maxUdpAnswer, parseQuery } from './message.ts'
import { Upstream } from './upstream.ts'

/** Questions waiting for upstream servers at once, each with a socket; beyond it SERVFAIL. */
const maxPending = 500
const maxTcpConnections = 128
const tcpIdleMs = 10_000
const serverDeadlineMs = 1_500
/** Apps give up after 5 s; an answer later than that is for nobody. */
const questionDeadlineMs = 4_500

export interface ResolverOptions {
  /** Loopback addresses to listen on, UDP and TCP, all on one port (0: any, for the first; tests). */
  addresses: readonly string[]
  port: number
  settings: NameSettings & { servers: readonly string[] }
  /** Port of the upstream servers; 53. */
  upstreamPort?: number
  view: NameView
  cache?: AnswerCache
  log: Logger
  metrics: Metrics
}

export interface Resolver {
  port: number
  /** Questions that wait for an upstream server now. */
  readonly pending: number
  close(): Promise<void>
}

interface Found {
  reply: Reply
  source: 'cluster' | 'cache' | 'upstream'
}

/** Answers cluster names from the catalogue, and forwards everything else to the servers of resolv.conf. */
export async function listenResolver(options: ResolverOptions): Promise<Resolver> {
  const answering = new Answering(options)
  const listeners: { close(): void }[] = []
  let { port } = options
  for (const address of options.addresses) {
    const tcp = await listenTcp(address, port, answering)
    port = (tcp.address() as { port: number }).port
    listeners.push(tcp, await listenUdp(address, port, answering))
  }
  return {
    port,
    get pending() {
      return answering.pending
    },
    async close() {
      answering.stop()
      for (const listener of listeners) listener.close()
    },
  }
}

/** From a message to its answer, whatever the transport. */
class Answering {
  readonly #options: ResolverOptions
  readonly #upstream: Upstream
  readonly #cache: AnswerCache
  readonly #encoded = new EncodedAnswers()
  readonly #waiting = new Map<string, Promise<Reply>>()
  readonly #aborter = new AbortController()
  readonly #queries
  readonly log: Logger

  constructor(options: ResolverOptions) {
    const { settings, upstreamPort = 53, metrics, log } = options
    this.#options = options
    this.log = log
    this.#cache = options.cache ?? new AnswerCache()
    const failures = metrics.counter(
      'dns_upstream_failures_total',
      'Upstream DNS servers that did not answer.',
      ['server'],
    )
    this.#queries = metrics.counter('dns_queries_total', 'Answered DNS queries.', ['source', 'rcode'])
    this.#upstream = new Upstream({
      servers: settings.servers,
      port: upstreamPort,
      serverDeadlineMs,
      onFailure: (server, why) => {
        failures.inc({ server })
        log.debug({ server, why }, 'an upstream DNS server does not answer')
      },
    })
  }

  get pending(): number {
    return this.#waiting.size
  }

  stop(): void {
    this.#aborter.abort(new EdgeMeshError('stopping', 'Cannot resolve: the sidecar is stopping.'))
  }

  /** The answer to a message by UDP that was asked before, of the catalogue as it is. */
  known(message: Buffer): Buffer | undefined {
    const { view } = this.#options
    const encoded = this.#encoded.get(message, view.version)
    if (encoded === undefined) return undefined
    if (encoded.service !== undefined) view.used(encoded.service)
    this.#queries.inc({ source: 'cluster', rcode: encoded.rcode })
    return answerTo(message, encoded)
  }

  /** The encoded answer; undefined where none is due. `limit` is in bytes and of the transport. Never rejects. */
  async answer(message: Buffer, transport: 'udp' | 'tcp'): Promise<Buffer | undefined> {
    const parsed = parseQuery(message)
    if ('drop' in parsed) return undefined
    if ('refuse' in parsed) {
      this.#queries.inc({ source: 'invalid', rcode: 'error' })
      return parsed.refuse
    }
    const { query } = parsed
    const { view, settings } = this.#options
    const decision = decide(query.question, view, settings)
    const { reply, source } =
      decision.kind === 'reply' ? this.#own(decision) : await this.#find(query.question, decision)
    this.#queries.inc({ source, rcode: reply.rcode })
    const udpLimit = Math.min(query.ednsSize ?? 512, maxUdpAnswer)
    const limit = transport === 'tcp' ? maxTcpMessage : udpLimit
    const answer = encodeReply(query, reply, source === 'cluster', limit)
    if (decision.kind === 'reply' && transport === 'udp')
      this.#encoded.put(message, view.version, { answer, rcode: reply.rcode, service: decision.service })
    return answer
  }

  #own({ reply, service }: Extract<Decision, { kind: 'reply' }>): Found {
    if (service !== undefined) this.#options.view.used(service)
    return { reply, source: 'cluster' }
  }

  /** What the catalogue's services alone do not tell. */
  async #find(question: Question, decision: Exclude<Decision, { kind: 'reply' }>): Promise<Found> {
    const { view, settings } = this.#options
    try {
      if (decision.kind === 'headless') {
        const { namespace, name } = decision.service
        const endpoints = await view.endpoints(`${namespace}/${name}`, this.#deadline())
        return { reply: answerHeadless(question, decision, endpoints, settings), source: 'cluster' }
      }
      if (decision.alias === undefined) return await this.#forward(question)
      return { reply: await this.#followAlias(question, decision.alias), source: 'cluster' }
    } catch (error) {
      this.log.debug({ name: question.name, error: sentenceOf(error) }, 'no answer')
      return { reply: none('SERVFAIL', settings), source: 'upstream' }
    }
  }

  #deadline(): AbortSignal {
    return AbortSignal.any([this.#aborter.signal, AbortSignal.timeout(questionDeadlineMs)])
  }

  async #followAlias(question: Question, alias: Answer & { data: string }): Promise<Reply> {
    if (question.type === 'CNAME') return found([alias])
    const { reply } = await this.#forward({ ...question, name: alias.data })
    return { ...reply, answers: [alias, ...reply.answers] }
  }

  async #forward(question: Question): Promise<{ reply: Reply; source: 'cache' | 'upstream' }> {
    const key = `${question.type} ${question.name.toLowerCase()}`
    const cached = this.#cache.get(key)
    if (cached !== undefined) return { reply: inCaseOf(question, cached), source: 'cache' }
    const waiting = this.#waiting.get(key) ?? this.#ask(key, question)
    try {
      return { reply: inCaseOf(question, await waiting), source: 'upstream' }
    } catch (error) {
      const stale = this.#cache.stale(key)
      if (stale === undefined) throw error
      return { reply: inCaseOf(question, stale), source: 'cache' }
    }
  }

  /** One question is asked once, however many wait for it. */
  #ask(key: string, question: Question): Promise<Reply> {
    if (this.#waiting.size >= maxPending) {
      return Promise.reject(
        new EdgeMeshError('limit', 'Cannot resolve: too many questions wait for upstream servers.'),
      )
    }
    const asking = this.#upstream
      .ask(question, this.#deadline())
      .then((reply) => {
        this.#cache.put(key, reply)
        return reply
      })
      .finally(() => this.#waiting.delete(key))
    this.#waiting.set(key, asking)
    return asking
  }
}

/** Clients may compare names by case (0x20): the question's own spelling goes back. */
function inCaseOf({ name }: Question, reply: Reply): Reply {
  const lower = name.toLowerCase()
  const answers = reply.answers.map((a) =>
    a.name !== name && a.name.toLowerCase() === lower ? { ...a, name } : a,
  )
  return { ...reply, answers }
}

async function listenUdp(address: string, port: number, answering: Answering): Promise<UdpSocket> {
  const socket = createSocket({
    type: address.includes(':') ? 'udp6' : 'udp4',
    recvBufferSize: 1_048_576,
    // Where an answer goes is an address already; Node's own look-up would find that out by two regular expressions.
    lookup: (known, family, done) => done(null, known, Number(family)),
  })
  socket.on('message', async (message, { address: from, port: fromPort }) => {
    const answer = answering.known(message) ?? (await answering.answer(message, 'udp'))
    if (answer !== undefined && !closed) socket.send(answer, fromPort, from)
  })
  let closed = false
  socket.once('close', () => {
    closed = true
  })
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  socket.once('error', (error) => reject(cannotListen(address, port, error)))
  socket.bind({ address, port }, resolve)
  await promise
  socket.on('error', (error) => answering.log.warn({ error: sentenceOf(error) }, 'DNS socket error'))
  return socket
}

async function listenTcp(address: string, port: number, answering: Answering): Promise<Server> {
  const server = createServer({ noDelay: true }, (socket) => serveTcp(socket, answering))
  server.maxConnections = maxTcpConnections
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  server.once('error', (error) => reject(cannotListen(address, port, error)))
  server.listen({ host: address, port }, resolve)
  await promise
  server.on('error', (error) => answering.log.warn({ error: sentenceOf(error) }, 'DNS socket error'))
  return server
}

/** Length-prefixed messages, any number on one connection; answers go out as they come (RFC 7766). */
function serveTcp(socket: Socket, answering: Answering): void {
  let received = Buffer.alloc(0)
  socket.setTimeout(tcpIdleMs, () => socket.destroy())
  socket.on('error', () => socket.destroy())
  socket.on('data', async (chunk) => {
    received = Buffer.concat([received, chunk])
    while (received.length >= 2 && received.length >= 2 + received.readUInt16BE(0)) {
      const length = received.readUInt16BE(0)
      const message = received.subarray(2, 2 + length)
      received = received.subarray(2 + length)
      // One at a time: a client that asks faster than it reads waits for itself.
      socket.pause()
      const answer = await answering.answer(message, 'tcp')
      if (socket.destroyed) return
      if (answer === undefined) socket.destroy()
      else socket.write(framed(answer))
    }
    socket.resume()
  })
}

function framed(message: Buffer): Buffer {
  const prefix = Buffer.alloc(2)
  prefix.writeUInt16BE(message.length)
  return Buffer.concat([prefix, message])
}

function cannotListen(address: string, port: number, error: Error): EdgeMeshError {
  return new EdgeMeshError(
    'bad-config',
    `Cannot listen for DNS on ${address} port ${port}: ${error.message}.`,
    error,
  )
}
