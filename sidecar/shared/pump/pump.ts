import { Worker } from 'node:worker_threads'
import { EdgeMeshError, sentenceOf } from '../errors.ts'
import type { Logger } from '../log.ts'
import { close, closeWithReset, dup, epoll, eventfd, wake } from './libc.ts'
import type { Order, Report, WorkerData } from './messages.ts'
import type { TlsIdentity } from './openssl.ts'
import { setDeadPeerTimeout } from './tcp.ts'

/** Each may hold two descriptors and half a megabyte of the user's pipe pages. */
const maxPipes = 32
/** A worker that died is replaced at the next use, but not at once again and again; in ms. */
const replaceAfterMs = 5_000
/** How long the peer of a TLS connection may be silent before the kernel gives it up, in seconds. */
const deadPeerSeconds = 15

export interface Moved {
  /** Bytes from `a` (or what was fed into TLS), and to it. */
  aToB: number
  bToA: number
  broke?: 'a' | 'b'
  error?: string
}

/** A TLS connection in the worker; see SideConnection for how the two sides agree. */
export interface Side {
  accept(): void
  /** Duplicates the descriptor; the caller's may be closed then. `ended`: it has been sent our FIN. */
  feed(fd: number | undefined, ended: boolean): void
  drain(fd: number | undefined): void
  /** Resets everything that it has. */
  abort(): void
  readonly moved: Promise<Moved>
}

export interface SideEvents {
  /** `certificate` is the peer's, DER, verified against the mesh's roots. Accept or abort. */
  onNamed: (certificate: Uint8Array, name: Uint8Array) => void
  onAgreed: () => void
}

/** Another user of the worker, which runs a program of the guest's own then. */
export interface Guest {
  readonly worker: URL
  /** What its program finds in the worker's data, made anew for each worker. */
  data(): unknown
  onReport(report: unknown): void
  /** The worker is gone; what it had made is the guest's to clean up. */
  onExit(): void
}

interface Job {
  fds: number[]
  /** To be closed with a reset, whatever the worker says. */
  aborted: boolean
  events: SideEvents | undefined
  resolve: (moved: Moved) => void
}

interface Running {
  worker: Worker
  wakeFd: number
  epollFd: number
  pipes: number[]
  /** All that it needs is there: only now may it be given connections. */
  ready: boolean
  readonly started: PromiseWithResolvers<boolean>
}

/** Counts for metrics. */
export interface PumpUse {
  connections: number
  descriptors: number
  pipes: number
}

/**
 * The worker that moves bulk bytes by epoll, splice(2) and OpenSSL. It is started at first use, as it costs some
 * 10 MB. Where it cannot run, `available` is false, which is said once, and everything stays in JavaScript.
 */
export class Pump {
  readonly #log: Logger
  readonly #maxConnections: number
  readonly #jobs = new Map<number, Job>()
  #running: Running | undefined
  #identity: TlsIdentity | undefined
  #lastId = 0
  #notBefore = 0
  #closed = false
  #guest: Guest | undefined

  /** Beyond `maxConnections` they stay in JavaScript; each has up to five descriptors. */
  constructor(log: Logger, maxConnections = 512) {
    this.#log = log
    this.#maxConnections = maxConnections
  }

  get available(): boolean {
    return !this.#closed && this.#jobs.size < this.#maxConnections && performance.now() >= this.#notBefore
  }

  get isRunning(): boolean {
    return this.#running !== undefined
  }

  /** Whether it takes connections; starts the worker if need be. */
  async ready(): Promise<boolean> {
    if (!this.available) return false
    this.#start()
    return (await this.#running?.started.promise) ?? false
  }

  /** Before the first use. */
  host(guest: Guest): void {
    this.#guest = guest
  }

  /** An order to the guest's program. */
  tell(order: unknown): void {
    this.#order({ type: 'guest', order })
  }

  get use(): PumpUse {
    let descriptors = 0
    for (const { fds } of this.#jobs.values()) descriptors += fds.length
    const pipes = (this.#running?.pipes.length ?? 0) / 2
    return { connections: this.#jobs.size, descriptors: descriptors + 2 * pipes, pipes }
  }

  /** For TLS connections that begin from now on. */
  setIdentity(identity: TlsIdentity): void {
    this.#identity = identity
    if (this.#running !== undefined) this.#order({ type: 'identity', identity })
  }

  /**
   * Joins two sockets until both directions have ended; undefined when it cannot take them. The descriptors are
   * duplicated: the caller closes its own, and must not read or write them any more.
   */
  join(
    a: number,
    b: number,
    ended: { a: boolean; b: boolean },
  ): { moved: Promise<Moved>; abort(): void } | undefined {
    const fds = this.#duplicate([a, b])
    if (fds === undefined) return undefined
    const [ownA = -1, ownB = -1] = fds
    const { id, job, moved } = this.#add(fds, undefined)
    this.#order({ type: 'join', id, a: ownA, b: ownB, aEnded: ended.a, bEnded: ended.b })
    return { moved, abort: () => this.#abort(id, job) }
  }

  /** TLS over the socket, as client of `serverName` that asks for `name`, or as server; undefined when it cannot. */
  secure(
    fd: number,
    client: { serverName: string; name: Uint8Array } | undefined,
    events: SideEvents,
  ): Side | undefined {
    if (this.#identity === undefined) return undefined // nobody to be yet
    const fds = this.#duplicate([fd])
    const [own = -1] = fds ?? []
    if (fds === undefined) return undefined
    setDeadPeerTimeout(own, deadPeerSeconds)
    const { id, job, moved } = this.#add(fds, events)
    this.#order({ type: 'secure', id, fd: own, ...(client === undefined ? {} : { client }) })
    const abort = () => this.#abort(id, job)
    const attach = (
      order: { type: 'feed'; ended: boolean } | { type: 'drain' },
      from: number | undefined,
    ) => {
      if (!this.#jobs.has(id)) return
      const copy = from === undefined ? undefined : dup(from)
      if (copy !== undefined && copy !== -1) job.fds.push(copy)
      if (copy === -1) abort()
      else this.#order({ ...order, id, fd: copy })
    }
    return {
      accept: () => this.#order({ type: 'accept', id }),
      feed: (from, ended) => attach({ type: 'feed', ended }, from),
      drain: (to) => attach({ type: 'drain' }, to),
      abort,
      moved,
    }
  }

  async close(): Promise<void> {
    this.#closed = true
    const running = this.#running
    if (running === undefined) return
    running.worker.removeAllListeners('exit')
    const ended = running.worker.terminate()
    wake(running.wakeFd)
    await ended
    this.#bury('the pump is closed')
  }

  #duplicate(fds: readonly number[]): number[] | undefined {
    if (!this.available || !this.#running?.ready) return undefined
    const copies = fds.map((fd) => dup(fd))
    if (!copies.includes(-1)) return copies
    for (const fd of copies) if (fd !== -1) close(fd)
    return undefined
  }

  #add(fds: number[], events: SideEvents | undefined) {
    const { promise: moved, resolve } = Promise.withResolvers<Moved>()
    const job: Job = { fds, aborted: false, events, resolve }
    const id = ++this.#lastId
    this.#jobs.set(id, job)
    return { id, job, moved }
  }

  #abort(id: number, job: Job): void {
    job.aborted = true
    this.#order({ type: 'abort', id })
  }

  #order(order: Order): void {
    if (this.#running === undefined) return
    this.#running.worker.postMessage(order)
    wake(this.#running.wakeFd)
  }

  #start(): void {
    if (this.#running !== undefined) return
    const [epollFd, wakeFd] = [epoll(), eventfd()]
    try {
      if (epollFd < 0 || wakeFd < 0)
        throw new EdgeMeshError('kernel-unfit', 'Cannot make an epoll set and an eventfd.')
      const data: WorkerData = { epollFd, wakeFd, maxPipes, guest: this.#guest?.data() }
      const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js'
      const file = extension === 'ts' ? './worker.ts' : './pump-worker.js'
      const worker = new Worker(this.#guest?.worker ?? new URL(file, import.meta.url), {
        workerData: data,
        resourceLimits: { maxYoungGenerationSizeMb: 2, maxOldGenerationSizeMb: 64, stackSizeMb: 1 },
      })
      worker.unref()
      worker.on('message', (report: Report) => this.#onReport(report))
      let failure: unknown
      worker.on('error', (error) => {
        failure = error
      })
      worker.once('exit', () => this.#onExit(failure))
      this.#running = { worker, wakeFd, epollFd, pipes: [], ready: false, started: Promise.withResolvers() }
      if (this.#identity !== undefined) this.#order({ type: 'identity', identity: this.#identity })
    } catch (error) {
      for (const fd of [epollFd, wakeFd]) if (fd >= 0) close(fd)
      this.#giveUp(error)
    }
  }

  /** This kernel or this Node does not have what the worker needs: trying again would fail again. */
  #giveUp(error: unknown): void {
    this.#notBefore = Number.POSITIVE_INFINITY
    this.#log.warn({ error: sentenceOf(error) }, 'no pump here: bulk is carried in JavaScript')
  }

  #onReport(report: Report): void {
    if (report.type === 'ready' || report.type === 'pipe') {
      if (report.type === 'pipe') this.#running?.pipes.push(report.read, report.write)
      else if (this.#running !== undefined) {
        this.#running.ready = true
        this.#running.started.resolve(true)
      }
      return
    }
    if (report.type === 'guest') {
      this.#guest?.onReport(report.report)
      return
    }
    const job = this.#jobs.get(report.id)
    if (job === undefined) return
    if (report.type === 'named') job.events?.onNamed(report.certificate, report.name)
    else if (report.type === 'agreed') job.events?.onAgreed()
    else {
      const { type: _type, id, ...moved } = report
      this.#end(id, job, moved)
    }
  }

  #end(id: number, job: Job, moved: Moved): void {
    this.#jobs.delete(id)
    const isClean = moved.broke === undefined && !job.aborted
    for (const fd of job.fds) isClean ? close(fd) : closeWithReset(fd)
    job.resolve(moved)
  }

  #onExit(failure: unknown): void {
    const connections = this.#jobs.size
    if (this.#running?.ready) {
      this.#notBefore = performance.now() + replaceAfterMs
      const line = { connections, error: failure === undefined ? undefined : sentenceOf(failure) }
      this.#log.error(line, 'the pump died, and its connections with it')
    } else this.#giveUp(failure ?? 'its worker ended')
    this.#bury('the pump died')
  }

  #bury(error: string): void {
    const { wakeFd = -1, epollFd = -1, pipes = [] } = this.#running ?? {}
    this.#running?.started.resolve(false)
    this.#running = undefined
    for (const [id, job] of this.#jobs) this.#end(id, job, { aToB: 0, bToA: 0, broke: 'b', error })
    for (const fd of [wakeFd, epollFd, ...pipes]) if (fd >= 0) close(fd)
    this.#guest?.onExit()
  }
}
