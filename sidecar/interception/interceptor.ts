import { createServer, type ListenOptions, type Server, type Socket } from 'node:net'
import { descriptorOf } from '#shared/descriptor.ts'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import type { Logger } from '#shared/log.ts'
import { close, dup, setListening } from '#shared/pump/libc.ts'
import { unpaceAccepted } from '#shared/pump/pacing.ts'
import { resetStream } from '#shared/reset.ts'
import type { Destination, Detour } from '../services/destination.ts'
import { interceptorSocket } from './loopback.ts'
import { originalDestination } from './original-destination.ts'

/** Captured connections open at once; the kernel refuses more. Each costs two file descriptors at most. */
export const maxConnections = 8_000
const backlog = 4_096

export interface InterceptorOptions {
  /** Loopback only: nothing outside the pod can reach the interceptor. Of IPv4 it is all of loopback, where possible. */
  addresses: readonly ('127.0.0.1' | '::1')[]
  port: number
  /** Takes the socket over, paused: nothing of the app's bytes has been read. */
  onConnection: (socket: Socket, destination: Destination, detour: Detour) => void
  log: Logger
}

/** Accepts what the rules redirect, and recovers from the kernel where each connection was meant to go. */
export class Interceptor {
  readonly #options: InterceptorOptions
  /** Duplicates of what listens, so that who accepts can change while the kernel goes on queueing. */
  readonly #listeners: { fd: number; family: 4 | 6 }[] = []
  #servers: Server[] = []
  #closed = false

  constructor(options: InterceptorOptions) {
    this.#options = options
  }

  async listen(): Promise<void> {
    const { addresses, port } = this.#options
    for (const host of addresses) {
      const fd4 = host === '127.0.0.1' ? interceptorSocket(port) : undefined
      const where = fd4 === undefined ? { host, port } : { fd: fd4 }
      const server = await this.#serve(where, `${host} port ${port}`)
      const fd = dup((server as Server & { _handle: { fd: number } })._handle.fd)
      if (fd >= 0) this.#listeners.push({ fd, family: host === '::1' ? 6 : 4 })
    }
  }

  /** Accepts no more itself: whoever is given these listening sockets does. They stay ours. */
  handOver(): readonly { fd: number; family: 4 | 6 }[] {
    if (this.#closed || this.#listeners.length < this.#options.addresses.length) return []
    for (const { fd } of this.#listeners) {
      setListening(fd)
      unpaceAccepted(fd)
    }
    for (const server of this.#servers.splice(0)) server.close()
    return this.#listeners
  }

  /** Accepts again after `handOver`. */
  async takeBack(): Promise<void> {
    if (this.#closed || this.#servers.length > 0) return
    for (const { fd } of this.#listeners) await this.#serve({ fd: dup(fd) }, 'the port that it had')
  }

  /** A connection that was accepted; its socket is paused and nothing has been read. */
  accept(socket: Socket, detour: Detour = {}): void {
    const { onConnection, log } = this.#options
    socket.on('error', () => undefined) // seen by whoever splices it; before that, its close is enough
    try {
      const destination = originalDestination(descriptorOf(socket), socket.remoteFamily === 'IPv6' ? 6 : 4)
      onConnection(socket, destination, detour)
    } catch (error) {
      log.warn({ error: sentenceOf(error) }, 'refused a connection whose destination is not known')
      resetStream(socket)
    }
  }

  /** No more connections are accepted; those that are open go on. */
  close(): void {
    this.#closed = true
    for (const server of this.#servers.splice(0)) server.close()
    for (const { fd } of this.#listeners.splice(0)) close(fd)
  }

  async #serve(where: ListenOptions & { fd?: number }, name: string): Promise<Server> {
    const { log } = this.#options
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true, keepAlive: true })
    server.maxConnections = maxConnections
    server.on('connection', (socket) => this.accept(socket))
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    server.once('error', (error) =>
      reject(new EdgeMeshError('bad-config', `Cannot listen on ${name}: ${error.message}.`, error)),
    )
    server.listen(where, backlog, resolve) // in `where` it would be ignored beside a descriptor
    await promise
    server.on('error', (error) => log.error({ error: sentenceOf(error) }, 'the interceptor cannot accept'))
    this.#servers.push(server)
    return server
  }
}
