import type { Socket } from 'node:net'
import { Worker } from 'node:worker_threads'
import { sentenceOf } from '#shared/errors.ts'
import type { Logger } from '#shared/log.ts'
import { trafficKeyOf } from '#shared/tls13/record.ts'
import type { Answer, Order, Report, ServerIdentity } from './messages.ts'
import { SealedStream } from './sealed-stream.ts'

/** What a client may send before it is through: the longest ClientHello that OpenSSL takes, and the rest. */
const maxBytes = 32 * 1024
/** In how many pieces, while it waits. */
const maxPieces = 64
/** Answers that the worker owes us at most, so that what a turn of the event loop may bring is bounded. */
const maxAsked = 16
/** While the server is busy a handshake begins so often all the same, in ms. */
const busyEveryMs = 20
/** And so often it is looked whether it still is, in ms. */
const lookEveryMs = 20
/** A worker that died is replaced, but not at once again and again; in ms. */
const replaceAfterMs = 5_000
/** A worker that neither answers nor starts for so long is ended, in ms: an answer takes it about one. */
const answerDeadlineMs = 20_000

export interface TerminatorOptions {
  /** That a client may take in all; what it waits for us does not count. */
  handshakeMs: number
  log: Logger
  onSecured: (stream: SealedStream) => void
  onFailed: (why: string) => void
  /** Whether those who are through wait for the server: new handshakes then begin more slowly. */
  isBusy?: () => boolean
  /** Another file than ours; for tests. */
  worker?: URL
  replaceAfterMs?: number
  busyEveryMs?: number
}

interface Client {
  id: number
  socket: Socket
  /** Left of the time that it may take. */
  leftMs: number
  /** Since when it is the client's turn. */
  since: number
  late: NodeJS.Timeout | undefined
  taken: number
  /** What it has sent while it waits for its handshake to begin. */
  first: Buffer[]
  onData: (bytes: Buffer) => void
  onEnd: () => void
}

/**
 * Does TLS handshakes in a worker, where they pause nobody, and hands over connections of which only the keys are left.
 * Clients are served in turn, those that have begun first; one that is slow holds up only itself, and one that leaves
 * before its turn costs nothing more. Where the worker cannot run, `available` is false.
 */
export class Terminator {
  readonly #options: TerminatorOptions
  readonly #clients = new Map<number, Client>()
  /** Bytes that wait for their turn at the worker: one piece of each client at most. */
  readonly #waiting: { id: number; bytes: Uint8Array }[] = []
  /** Clients whose handshake has not begun. */
  readonly #fresh = new Set<Client>()
  #begunAt = Number.NEGATIVE_INFINITY
  #beginLater: NodeJS.Timeout | undefined
  #asked = 0
  #askingSoon = false
  #lastId = 0
  #worker: Worker | undefined
  #ready = false
  #identity: Extract<Order, { type: 'identity' }> | undefined
  #closed = false
  #again: NodeJS.Timeout | undefined
  #silent: NodeJS.Timeout | undefined

  constructor(options: TerminatorOptions) {
    this.#options = options
  }

  get available(): boolean {
    return this.#ready
  }

  /** Clients whose handshake has not begun. */
  get waiting(): number {
    return this.#fresh.size
  }

  /** Resolves once it is clear whether handshakes can be done here with this identity. */
  async use(identity: ServerIdentity): Promise<void> {
    this.#identity = { type: 'identity', ...identity }
    if (this.#worker === undefined) await this.#start()
    else this.#order(this.#identity)
  }

  /** Takes a paused connection whose first bytes have been read. One that is `urgent` need not wait to begin. */
  take(socket: Socket, first: Buffer, urgent = false): void {
    const { handshakeMs } = this.#options
    const client: Client = {
      id: ++this.#lastId,
      socket,
      leftMs: handshakeMs,
      since: 0,
      late: undefined,
      taken: 0,
      first: [],
      onData: (bytes) => this.#onBytes(client, bytes),
      onEnd: () => this.#fail(client, 'the client ended'),
    }
    this.#clients.set(client.id, client)
    socket.once('end', client.onEnd)
    socket.once('close', client.onEnd)
    if (urgent) {
      this.#onBytes(client, first)
      return
    }
    this.#fresh.add(client)
    this.#onBytes(client, first)
    if (this.#clients.has(client.id)) socket.on('data', client.onData).resume() // or its leaving would not be seen
    this.#ask()
  }

  async close(): Promise<void> {
    this.#closed = true
    clearTimeout(this.#again)
    clearTimeout(this.#beginLater)
    clearTimeout(this.#silent)
    await this.#worker?.terminate()
  }

  #onBytes(client: Client, bytes: Buffer): void {
    client.taken += bytes.length
    if (client.taken > maxBytes || client.first.length > maxPieces)
      this.#fail(client, 'the client sends too much')
    else if (this.#fresh.has(client)) client.first.push(bytes)
    else {
      this.#takeTurn(client, bytes)
      this.#ask()
    }
  }

  /** From here on it is our turn: the client's time stands still, and it is not read. */
  #takeTurn(client: Client, bytes: Buffer): void {
    client.socket.off('data', client.onData).pause()
    if (client.late !== undefined) client.leftMs -= performance.now() - client.since
    clearTimeout(client.late)
    this.#waiting.push({ id: client.id, bytes })
  }

  #ask(): void {
    while (this.#asked < maxAsked && (this.#waiting.length > 0 || this.#begin())) {
      const next = this.#waiting.shift()
      if (next === undefined || !this.#clients.has(next.id)) continue
      this.#asked++
      if (this.#asked === 1) this.#expectAnswer()
      this.#order({ type: 'bytes', ...next })
    }
  }

  /** Begins the handshake of the client that has waited longest; false when there is none, or no time for it. */
  #begin(): boolean {
    const [client] = this.#fresh
    if (client === undefined) return false
    const { isBusy, busyEveryMs: everyMs = busyEveryMs } = this.#options
    const now = performance.now()
    if (isBusy?.() === true && now - this.#begunAt < everyMs) {
      this.#beginLater ??= setTimeout(() => {
        this.#beginLater = undefined
        this.#ask()
      }, lookEveryMs)
      return false
    }
    this.#begunAt = now
    this.#fresh.delete(client)
    this.#takeTurn(client, Buffer.concat(client.first.splice(0)))
    return true
  }

  /** The clients' time stands still while it is our turn, so that must end by itself. */
  #expectAnswer(): void {
    const worker = this.#worker
    clearTimeout(this.#silent)
    this.#silent = setTimeout(() => worker?.terminate(), answerDeadlineMs)
    this.#silent.unref()
  }

  #onAnswer(answer: Answer): void {
    this.#asked--
    if (this.#asked === 0) clearTimeout(this.#silent)
    else this.#silent?.refresh()
    const client = this.#clients.get(answer.id)
    if (client !== undefined) this.#pass(client, answer)
    this.#askSoon()
  }

  /** Not at once: what the worker answers while others of its answers are passed on would be of the same turn. */
  #askSoon(): void {
    if (this.#askingSoon) return
    this.#askingSoon = true
    setImmediate(() => {
      this.#askingSoon = false
      this.#ask()
    })
  }

  #pass(client: Client, { bytes, done, error }: Answer): void {
    const { socket } = client
    if (bytes.length > 0) socket.write(bytes)
    if (error !== undefined) {
      this.#fail(client, error)
      return
    }
    if (done === undefined) {
      client.since = performance.now()
      client.late = setTimeout(() => this.#fail(client, 'the client is too slow'), client.leftMs)
      socket.on('data', client.onData).resume()
      return
    }
    this.#clients.delete(client.id)
    socket.off('end', client.onEnd).off('close', client.onEnd)
    const keys = { read: trafficKeyOf(done.client), write: trafficKeyOf(done.server) }
    this.#options.onSecured(new SealedStream(socket, keys, Buffer.from(done.early), done.certificate))
  }

  #fail(client: Client, why: string): void {
    if (!this.#clients.has(client.id)) return
    this.#options.onFailed(why)
    this.#forget(client)
    client.socket.destroySoon() // an alert may be under way
  }

  #forget(client: Client): void {
    clearTimeout(client.late)
    if (this.#clients.delete(client.id) && !this.#fresh.delete(client))
      this.#order({ type: 'drop', id: client.id })
  }

  #order(order: Order): void {
    this.#worker?.postMessage(order)
  }

  async #start(): Promise<void> {
    const { log } = this.#options
    clearTimeout(this.#again)
    const started = Promise.withResolvers<void>()
    const file = import.meta.url.endsWith('.ts') ? './worker.ts' : './handshake-worker.js'
    const worker = new Worker(this.#options.worker ?? new URL(file, import.meta.url), {
      resourceLimits: { maxYoungGenerationSizeMb: 2, maxOldGenerationSizeMb: 64, stackSizeMb: 1 },
    })
    this.#worker = worker
    let failure: unknown = 'its worker ended'
    worker.unref()
    worker.on('error', (error) => {
      failure = error
    })
    worker.on('message', (report: Report) => {
      if (report.type === 'answer') return this.#onAnswer(report)
      if (this.#asked === 0) clearTimeout(this.#silent)
      this.#ready = true
      started.resolve()
    })
    worker.once('exit', () => {
      started.resolve()
      if (!this.#closed) this.#onDeath(failure)
    })
    if (this.#identity !== undefined) this.#order(this.#identity)
    this.#expectAnswer()
    await started.promise
    if (!this.#ready) log.debug('handshakes are done on the main thread')
  }

  /** Connections that are through are not touched; those in the middle cannot go on. */
  #onDeath(failure: unknown): void {
    const { log } = this.#options
    const wasReady = this.#ready
    clearTimeout(this.#silent)
    this.#ready = false
    this.#worker = undefined
    this.#asked = 0
    this.#waiting.length = 0
    for (const client of [...this.#clients.values()]) this.#fail(client, 'the worker died')
    const line = { error: sentenceOf(failure) }
    if (!wasReady) {
      log.warn(line, 'no worker for TLS here: control channels cost more memory')
      return
    }
    log.error(line, 'the worker for TLS handshakes died')
    this.#again = setTimeout(() => {
      this.#start().catch((error) =>
        log.error({ error: sentenceOf(error) }, 'cannot start the worker for TLS'),
      )
    }, this.#options.replaceAfterMs ?? replaceAfterMs)
    this.#again.unref()
  }
}
