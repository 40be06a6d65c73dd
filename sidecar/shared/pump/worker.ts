import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { sentenceOf } from '../errors.ts'
import { type Connection, JoinedSockets, SideConnection } from './connections.ts'
import { PipePool, type Port } from './lanes.ts'
import { drainWakes, Epoll } from './libc.ts'
import type { Order, Report, WorkerData } from './messages.ts'
import { TlsConnection, TlsContext } from './openssl.ts'

/** How long TLS and the two sides' agreement may take, in ms. */
const establishDeadlineMs = 10_000
/** How often deadlines are looked at while nothing else happens, in ms. */
const tickMs = 1_000

/** Carries bulk connections: one thread, one epoll set, no event loop of Node's. It blocks in epoll_wait only. */
class Loop {
  readonly #epoll: Epoll
  readonly #wakeFd: number
  readonly #pipes: PipePool
  readonly #connections = new Map<number, Connection>()
  readonly #byFd = new Map<number, { connection: Connection; port: Port }>()
  readonly #deadlines = new Map<SideConnection, number>()
  readonly #busy = new Set<Connection>()
  #context: TlsContext | undefined

  constructor({ epollFd, wakeFd, maxPipes }: WorkerData) {
    this.#epoll = new Epoll(epollFd)
    this.#wakeFd = wakeFd
    this.#pipes = new PipePool(maxPipes, (pipe) => report({ type: 'pipe', ...pipe }))
    this.#epoll.add(wakeFd)
  }

  run(): never {
    for (;;) {
      const timeoutMs = this.#busy.size > 0 ? 0 : this.#deadlines.size > 0 ? tickMs : -1
      this.#epoll.wait(timeoutMs, (fd, events) => this.#onEvent(fd, events))
      if (this.#deadlines.size > 0) this.#checkDeadlines()
      for (const connection of [...this.#busy]) this.#take(connection)
    }
  }

  #onEvent(fd: number, events: number): void {
    if (fd === this.#wakeFd) {
      drainWakes(fd)
      this.#readOrders()
      return
    }
    const watched = this.#byFd.get(fd)
    if (watched === undefined) return
    watched.port.on(events)
    this.#busy.add(watched.connection)
  }

  #readOrders(): void {
    for (;;) {
      const received = parentPort === null ? undefined : receiveMessageOnPort(parentPort)
      if (received === undefined) return
      const order = received.message as Order
      try {
        this.#obey(order)
      } catch (error) {
        if ('id' in order) this.#refuse(order.id, sentenceOf(error))
      }
    }
  }

  #obey(order: Order): void {
    switch (order.type) {
      case 'identity':
        this.#context?.free()
        this.#context = undefined
        this.#context = new TlsContext(order.identity)
        return
      case 'join':
        this.#start(new JoinedSockets(order, this.#pipes))
        return
      case 'secure':
        this.#secure(order)
        return
      case 'abort':
        this.#abort(order.id)
        return
    }
    const connection = this.#connections.get(order.id)
    if (!(connection instanceof SideConnection)) return // it has finished meanwhile, and the report is under way
    if (order.type === 'accept') connection.accept()
    if (order.type === 'feed') this.#watch(connection, connection.feed(order.fd, order.ended))
    if (order.type === 'drain') this.#watch(connection, connection.drain(order.fd))
    this.#busy.add(connection)
  }

  #secure({ id, fd, client }: Extract<Order, { type: 'secure' }>): void {
    if (this.#context === undefined) throw new Error('there is no certificate')
    const tls = new TlsConnection(this.#context, fd, client?.serverName)
    const connection = new SideConnection(id, fd, tls, client?.name, report)
    this.#deadlines.set(connection, performance.now() + establishDeadlineMs)
    this.#start(connection)
  }

  #refuse(id: number, error: string): void {
    report({ type: 'finished', id, aToB: 0, bToA: 0, broke: 'b', error })
  }

  #start(connection: Connection): void {
    this.#connections.set(connection.id, connection)
    for (const port of connection.ports) this.#watch(connection, port)
    this.#busy.add(connection)
  }

  #watch(connection: Connection, port: Port | undefined): void {
    if (port === undefined) return
    this.#byFd.set(port.fd, { connection, port })
    this.#epoll.add(port.fd)
  }

  #take(connection: Connection): void {
    const turn = connection.turn()
    if (turn === 'finished') this.#finish(connection)
    else if (turn === 'waiting') this.#busy.delete(connection)
  }

  #abort(id: number): void {
    const connection = this.#connections.get(id)
    if (connection !== undefined) this.#finish(connection)
  }

  #finish(connection: Connection): void {
    for (const { fd } of connection.ports) {
      this.#epoll.remove(fd)
      this.#byFd.delete(fd)
    }
    this.#connections.delete(connection.id)
    this.#busy.delete(connection)
    if (connection instanceof SideConnection) this.#deadlines.delete(connection)
    const outcome = connection.outcome()
    connection.close()
    report(outcome)
  }

  #checkDeadlines(): void {
    const now = performance.now()
    for (const [connection, until] of this.#deadlines) {
      if (connection.isOpen) this.#deadlines.delete(connection)
      else if (now > until) {
        connection.fail('it was not agreed upon in time')
        this.#busy.add(connection)
      }
    }
  }
}

function report(message: Report): void {
  parentPort?.postMessage(message)
}

const loop = new Loop(workerData as WorkerData)
report({ type: 'ready' })
loop.run()
