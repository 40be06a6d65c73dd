import { randomInt } from 'node:crypto'
import { connect, type Socket } from 'node:net'
import { codeOf, EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { withDeadline } from '#shared/lifecycle.ts'
import type { Mapping } from '#shared/nat.ts'
import {
  localPortHeader,
  mappingHeader,
  rendezvousPath,
  rendezvousProtocol,
  roundTripHeader,
  ticketHeader,
} from '#shared/wire.ts'
import type { ServerAddress } from '../config.ts'

/** Linux' ephemeral ports, of which others may be in use. */
const [firstPort, lastPort] = [32_768, 60_999]
const maxTries = 5
const connectDeadlineMs = 3_000

/** A connection to the server that holds a local port, and every NAT's mapping of it, until it is closed. */
export interface Held {
  localPort: number
  socket: Socket
}

/** Goes to a rendezvous, and says how its NAT maps where that was measured: the server sees where we come from. Resolves once it has taken the ticket. */
export async function holdPort(
  server: ServerAddress,
  ticket: string,
  mapping: Mapping | undefined,
): Promise<Held> {
  const started = performance.now()
  const held = await connectFromFreePort(server)
  const roundTripMs = Math.ceil(performance.now() - started)
  const { socket, localPort } = held
  const taken = Promise.withResolvers<void>()
  const fail = (why: string) =>
    taken.reject(new EdgeMeshError('unreachable', `Cannot go to the rendezvous at ${server.host}: ${why}.`))
  socket.once('data', (answer) =>
    String(answer).startsWith('HTTP/1.1 101 ') ? taken.resolve() : fail('the server refuses the ticket'),
  )
  socket.once('close', () => fail('it closed the connection'))
  socket.write(
    [
      `GET ${rendezvousPath} HTTP/1.1`,
      'Host: server',
      'Connection: Upgrade',
      `Upgrade: ${rendezvousProtocol}`,
      `${ticketHeader}: ${ticket}`,
      `${localPortHeader}: ${localPort}`,
      `${roundTripHeader}: ${roundTripMs}`,
      ...(mapping === undefined ? [] : [`${mappingHeader}: ${mapping}`]),
      '\r\n',
    ].join('\r\n'),
  )
  try {
    await withDeadline(taken.promise, connectDeadlineMs, 'go to the rendezvous')
    return held
  } catch (error) {
    socket.destroy()
    throw error
  }
}

/** The port is bound before the connect, with SO_REUSEADDR by libuv: only so can others share it. */
function connectFromFreePort({ host, port }: ServerAddress): Promise<Held> {
  return fromFreePort(async (localPort) => {
    const socket = connect({ host, port, localPort, noDelay: true, allowHalfOpen: false })
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    socket.once('connect', resolve)
    socket.on('error', reject) // later ones are followed by close
    try {
      await withDeadline(promise, connectDeadlineMs, 'reach the server')
      return { localPort, socket }
    } catch (error) {
      socket.destroy()
      throw error
    }
  })
}

/** Dials from a port that a pod may punch from; from another one where that is taken. */
export async function fromFreePort<T>(dial: (localPort: number) => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await dial(randomInt(firstPort, lastPort + 1))
    } catch (error) {
      if (codeOf(error) === 'EADDRINUSE' && tries < maxTries) continue
      throw new EdgeMeshError('unreachable', `Cannot go to the server: ${sentenceOf(error)}.`, error)
    }
  }
}
