import { createServer, type Server, type Socket } from 'node:net'
import { descriptorOf } from '#shared/descriptor.ts'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import type { Logger } from '#shared/log.ts'
import { resetStream } from '#shared/reset.ts'
import type { Destination } from '../services/destination.ts'
import { originalDestination } from './original-destination.ts'

/** Captured connections open at once; the kernel refuses more. Each costs two file descriptors at most. */
const maxConnections = 8_000

export interface InterceptorOptions {
  /** Loopback only: nothing outside the pod can reach the interceptor. */
  addresses: readonly ('127.0.0.1' | '::1')[]
  port: number
  /** Takes the socket over, paused: nothing of the app's bytes has been read. */
  onConnection: (socket: Socket, destination: Destination) => void
  log: Logger
}

export interface Interceptor {
  /** Resolves once no more connections are accepted; those that are open go on. */
  close(): Promise<void>
}

/** Accepts what the rules redirect, and recovers from the kernel where each connection was meant to go. */
export async function listenInterceptor(options: InterceptorOptions): Promise<Interceptor> {
  const servers = await Promise.all(options.addresses.map((address) => listenOn(address, options)))
  return {
    async close() {
      for (const server of servers) server.close()
    },
  }
}

async function listenOn(address: string, options: InterceptorOptions): Promise<Server> {
  const { port, log } = options
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true, keepAlive: true })
  server.maxConnections = maxConnections
  server.on('connection', (socket) => accept(socket, options))
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  server.once('error', (error) =>
    reject(
      new EdgeMeshError('bad-config', `Cannot listen on ${address} port ${port}: ${error.message}.`, error),
    ),
  )
  server.listen({ host: address, port, backlog: 4_096 }, resolve)
  await promise
  server.on('error', (error) => log.error({ error: sentenceOf(error) }, 'the interceptor cannot accept'))
  return server
}

function accept(socket: Socket, { onConnection, log }: InterceptorOptions): void {
  socket.on('error', () => undefined) // seen by whoever splices it; before that, its close is enough
  try {
    onConnection(socket, originalDestination(descriptorOf(socket), socket.remoteFamily === 'IPv6' ? 6 : 4))
  } catch (error) {
    log.warn({ error: sentenceOf(error) }, 'refused a connection whose destination is not known')
    resetStream(socket)
  }
}
