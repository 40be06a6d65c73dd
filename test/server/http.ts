import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { relayPath, relayProtocol, ticketHeader } from '../../sidecar/shared/wire.ts'

/** A plain connection to the server; half-open is allowed, and errors do not throw. */
export async function connectTo(port: number): Promise<Socket> {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true })
  socket.on('error', () => socket.destroy())
  await once(socket, 'connect')
  return socket
}

export const upgradeRequest = (
  ticket: string,
  { method = 'GET', path = relayPath, upgrade = relayProtocol } = {},
) =>
  `${method} ${path} HTTP/1.1\r\nHost: server\r\nConnection: Upgrade\r\nUpgrade: ${upgrade}\r\n${ticketHeader}: ${ticket}\r\n\r\n`

/** The status of the final answer; what follows its head is put back. `0` where the connection ends without one. */
export function readStatus(socket: Socket): Promise<number> {
  const { promise, resolve } = Promise.withResolvers<number>()
  let text = ''
  const onData = (chunk: Buffer) => {
    text = (text + chunk.toString('latin1')).replace(/^HTTP\/1\.1 102 .*?\r\n\r\n/s, '')
    const end = text.indexOf('\r\n\r\n')
    if (end < 0) return
    socket.off('data', onData)
    socket.pause()
    if (text.length > end + 4) socket.unshift(Buffer.from(text.slice(end + 4), 'latin1'))
    resolve(Number(/^HTTP\/1\.1 (\d{3}) /.exec(text)?.[1] ?? 0))
  }
  socket.on('data', onData)
  socket.once('close', () => resolve(0))
  return promise
}
