import type { IncomingMessage } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { dial } from '#shared/dial.ts'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import type { Logger } from '#shared/log.ts'
import { type SpliceOptions, spliceSockets } from '#shared/splice.ts'
import { forwardedHeader, relayPath, relayProtocol, ticketHeader } from '#shared/wire.ts'
import type { ReplicaAddress } from './directory.ts'

const connectDeadlineMs = 3_000
/** The owner answers within its own deadline for a join. */
const answerDeadlineMs = 11_000

/** Joins that wait for their owner's answer: of all, and of one source address. A whole site may share one. */
export const forwardLimits = { pending: 4_000, pendingPerAddress: 1_000, all: 8_000 }

/** Where a relay join belongs. */
export type Place = 'here' | 'refuse' | { forwardTo: ReplicaAddress }

/**
 * Pure: a ticket names its owner, and only the directory says where that is. What another replica passed on is never
 * passed on again.
 */
export function placeOf(
  owner: string,
  own: string,
  others: ReadonlyMap<string, ReplicaAddress>,
  forwarded: boolean,
): Place {
  if (owner === own) return 'here'
  const address = others.get(owner)
  return address === undefined || forwarded ? 'refuse' : { forwardTo: address }
}

/** Passes relay joins on to the replica that owns their ticket: a raw pipe from the first byte on. */
export class Forwarder {
  readonly #replica: string
  readonly #log: Logger
  readonly #bulk: () => SpliceOptions
  readonly #pending = new Map<string, number>()
  readonly #aborter = new AbortController()
  #waiting = 0
  #active = 0

  constructor(replica: string, log: Logger, bulk: () => SpliceOptions) {
    this.#replica = replica
    this.#log = log
    this.#bulk = bulk
  }

  /** Joins that are being passed on, or were and still run. */
  get active(): number {
    return this.#active
  }

  /** Resolves once the pipe has ended; rejects while the client can still be answered. */
  async forward(request: IncomingMessage, client: Duplex, head: Buffer, to: ReplicaAddress): Promise<void> {
    const from = request.socket.remoteAddress ?? ''
    const before = this.#pending.get(from) ?? 0
    const { pending, pendingPerAddress, all } = forwardLimits
    if (this.#active >= all || this.#waiting >= pending || before >= pendingPerAddress)
      throw new EdgeMeshError('limit', 'Cannot pass the join on: too many are on their way.')
    this.#active++
    this.#waiting++
    this.#pending.set(from, before + 1)
    try {
      const owner = await this.#answered(String(request.headers[ticketHeader]), client, to).finally(() =>
        this.#answer(from),
      )
      if (head.length > 0) client.unshift(head)
      const { reason } = await spliceSockets(client, owner, {
        ...this.#bulk(),
        signal: this.#aborter.signal,
      })
      this.#log.debug({ to, reason }, 'forwarded join ended')
    } finally {
      this.#active--
    }
  }

  close(): void {
    this.#aborter.abort(new EdgeMeshError('stopping', 'Cannot go on: the server is stopping.'))
  }

  #answer(from: string): void {
    this.#waiting--
    const left = (this.#pending.get(from) ?? 1) - 1
    if (left === 0) this.#pending.delete(from)
    else this.#pending.set(from, left)
  }

  /** The connection to the owner, once its answer is there to be read; the answer itself is for the client. */
  async #answered(ticket: string, client: Duplex, to: ReplicaAddress): Promise<Socket> {
    const gone = new AbortController()
    const onClose = () => gone.abort(new EdgeMeshError('reset', 'Cannot go on: the client gave up.'))
    client.once('close', onClose)
    const signal = AbortSignal.any([gone.signal, this.#aborter.signal])
    let owner: Socket | undefined
    try {
      owner = await dial({ ...to, deadlineMs: connectDeadlineMs, signal, allowHalfOpen: true })
      owner.write(
        `GET ${relayPath} HTTP/1.1\r\nHost: ${this.#replica}\r\nConnection: Upgrade\r\nUpgrade: ${relayProtocol}\r\n` +
          `${ticketHeader}: ${ticket}\r\n${forwardedHeader}: ${this.#replica}\r\n\r\n`,
      )
      await readable(owner, AbortSignal.any([signal, AbortSignal.timeout(answerDeadlineMs)]))
      return owner
    } catch (error) {
      owner?.destroy()
      throw new EdgeMeshError('unreachable', `Cannot pass the join on: ${sentenceOf(error)}`, error)
    } finally {
      client.off('close', onClose)
    }
  }
}

function readable(socket: Socket, signal: AbortSignal): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  const onAbort = () => reject(new EdgeMeshError('timeout', 'the owner does not answer'))
  socket.on('error', (error) => {
    reject(error)
    socket.destroy()
  })
  socket.once('readable', resolve)
  socket.once('close', () => reject(new EdgeMeshError('reset', 'the owner closed the connection')))
  signal.addEventListener('abort', onAbort, { once: true })
  if (signal.aborted) onAbort()
  return promise.finally(() => signal.removeEventListener('abort', onAbort))
}
