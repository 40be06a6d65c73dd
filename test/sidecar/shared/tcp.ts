import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'

/** The two ends of one TCP connection over loopback; half-open is allowed at both, and errors do not throw. */
export async function tcpPair(): Promise<[Socket, Socket]> {
  const server = createServer({ allowHalfOpen: true, noDelay: true })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  const port = typeof address === 'object' && address !== null ? address.port : 0
  const near = connect({ port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true })
  const [far] = (await once(server, 'connection')) as [Socket]
  if (near.connecting) await once(near, 'connect')
  server.close()
  near.on('error', () => near.destroy())
  far.on('error', () => far.destroy())
  return [near, far]
}

export interface Received {
  bytes: Buffer
  /** `fin`: the peer ended. Else the code of the error. */
  by: string
}

/** Reads until the peer ends or resets. */
export function receive(socket: Socket): Promise<Received> {
  const { promise, resolve } = Promise.withResolvers<Received>()
  const chunks: Buffer[] = []
  const settle = (by: string) => resolve({ bytes: Buffer.concat(chunks), by })
  socket.on('data', (chunk) => chunks.push(chunk))
  socket.once('end', () => settle('fin'))
  socket.once('error', (error: NodeJS.ErrnoException) => settle(error.code ?? 'unknown'))
  socket.once('close', () => settle('close'))
  socket.resume() // it may have been paused on purpose
  return promise
}
