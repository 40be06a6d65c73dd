import { parentPort, receiveMessageOnPort } from 'node:worker_threads'
import { sentenceOf } from '../errors.ts'
import { giveBackGarbage } from '../garbage.ts'
import { giveBackMappedPages } from '../mapped-pages.ts'
import { type Connection, JoinedSockets, SideConnection } from './connections.ts'
import { PipePool, type Port } from './lanes.ts'
import { Loop, type Task } from './loop.ts'
import type { Order, Report, WorkerData } from './messages.ts'
import { TlsContext } from './openssl.ts'
import { TlsConnection } from './tls-connection.ts'

/** How long TLS and the two sides' agreement may take, in ms. */
const establishDeadlineMs = 10_000
/** How often deadlines are looked at while nothing else happens, in ms. */
const tickMs = 1_000
/** So long after it began to work, in ms, what it runs all the time has been compiled, which leaves garbage as the start did. */
const warmMs = 5_000

/** Another user of the same loop. */
export type Guest = (order: unknown) => void

/** Carries the connections that the main thread orders it to. */
export class PumpWorker {
  readonly loop: Loop
  readonly pipes: PipePool
  readonly #connections = new Map<number, Task & { connection: Connection }>()
  readonly #deadlines = new Map<SideConnection, number>()
  #guest: Guest | undefined
  #context: TlsContext | undefined
  #warmAtMs = Number.POSITIVE_INFINITY

  constructor({ epollFd, wakeFd, maxPipes }: WorkerData) {
    this.loop = new Loop(epollFd, wakeFd, () => this.#readOrders())
    this.loop.before((now) => this.#checkDeadlines(now))
    this.loop.before((now) => this.#checkWarm(now))
    this.pipes = new PipePool(maxPipes, (pipe) => report({ type: 'pipe', ...pipe }))
  }

  /** Orders of type `guest` are given to it. */
  host(guest: Guest): void {
    this.#guest = guest
  }

  /** What TLS connections are made with now; undefined before there is a certificate. */
  get context(): TlsContext | undefined {
    return this.#context
  }

  run(): never {
    giveBackGarbage()
    giveBackMappedPages()
    report({ type: 'ready' })
    this.#warmAtMs = performance.now() + warmMs
    return this.loop.run()
  }

  #readOrders(): void {
    for (;;) {
      const received = parentPort === null ? undefined : receiveMessageOnPort(parentPort)
      if (received === undefined) return
      const order = received.message as Order
      try {
        this.#obey(order)
      } catch (error) {
        if (!('id' in order)) continue
        report({ type: 'finished', id: order.id, aToB: 0, bToA: 0, broke: 'b', error: sentenceOf(error) })
      }
    }
  }

  #obey(order: Order): void {
    switch (order.type) {
      case 'guest':
        this.#guest?.(order.order)
        return
      case 'identity':
        this.#context?.free()
        this.#context = undefined
        this.#context = new TlsContext(order.identity)
        return
      case 'join':
        this.#start(new JoinedSockets(order, this.pipes))
        return
      case 'secure':
        this.#secure(order)
        return
      case 'abort':
        this.#finish(order.id)
        return
    }
    const task = this.#connections.get(order.id)
    if (task === undefined || !(task.connection instanceof SideConnection)) return // it has finished meanwhile, and the report is under way
    const { connection } = task
    if (order.type === 'accept') connection.accept()
    else
      this.#watch(
        task,
        order.type === 'feed' ? connection.feed(order.fd, order.ended) : connection.drain(order.fd),
      )
    this.loop.stir(task)
  }

  #secure({ id, fd, client }: Extract<Order, { type: 'secure' }>): void {
    if (this.#context === undefined) throw new Error('there is no certificate')
    const tls = new TlsConnection(this.#context, fd, client?.serverName)
    const connection = new SideConnection(id, fd, tls, client?.name, report)
    this.#deadlines.set(connection, performance.now() + establishDeadlineMs)
    this.#start(connection)
  }

  #start(connection: Connection): void {
    const { id } = connection
    const turn = () => {
      const turn = connection.turn()
      if (turn === 'finished') this.#finish(id)
      return turn
    }
    const task = { connection, turn, place: -1 }
    this.#connections.set(id, task)
    for (const port of connection.ports) this.#watch(task, port)
    this.loop.stir(task)
  }

  #watch(task: Task, port: Port | undefined): void {
    if (port !== undefined) this.loop.watch(task, port)
  }

  #finish(id: number): void {
    const task = this.#connections.get(id)
    if (task === undefined) return
    const { connection } = task
    for (const { fd } of connection.ports) this.loop.unwatch(fd)
    this.#connections.delete(id)
    this.loop.rest(task)
    if (connection instanceof SideConnection) this.#deadlines.delete(connection)
    const outcome = connection.outcome()
    connection.close()
    report(outcome)
  }

  #checkWarm(now: number): number {
    if (this.#warmAtMs === Number.POSITIVE_INFINITY) return -1
    if (now < this.#warmAtMs) return Math.ceil(this.#warmAtMs - now)
    this.#warmAtMs = Number.POSITIVE_INFINITY
    giveBackGarbage()
    return -1
  }

  #checkDeadlines(now: number): number {
    for (const [connection, until] of this.#deadlines) {
      if (connection.isOpen) this.#deadlines.delete(connection)
      else if (now > until) {
        connection.fail('it was not agreed upon in time')
        const task = this.#connections.get(connection.id)
        if (task !== undefined) this.loop.stir(task)
      }
    }
    return this.#deadlines.size > 0 ? tickMs : -1
  }
}

export function report(message: Report): void {
  parentPort?.postMessage(message)
}
