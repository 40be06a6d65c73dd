import type { SecureContextOptions } from 'node:tls'
import type { WebSocket } from 'ws'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { pause } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import {
  decodeReplicaMessage,
  type RendezvousSighting,
  type ReplicaMessage,
  type ServerMessage,
} from '#shared/wire.ts'
import type { Registry } from '../registry.ts'
import type { Directory, ReplicaAddress } from './directory.ts'
import { Link } from './link.ts'

/** Less than clients wait for a ticket, so that they know that a slow answer is none of a server that lives. */
const deadlineMs = 4_500

export interface DeliveryOptions {
  replica: string
  trustDomain: string
  directory: Directory
  credentials: () => SecureContextOptions
  registry: Registry
  /** The pod has a channel at another replica since then. */
  onMoved: (podUid: string, at: number, from: string | undefined) => void
  /** Another replica has seen a pod that comes to a rendezvous of ours. */
  onSighted: (ticket: string, sighting: RendezvousSighting) => void
  log: Logger
}

/** Brings messages to pods, whichever replica they are connected to: one hop at most. */
export class Delivery {
  readonly #options: DeliveryOptions
  readonly #links = new Map<string, { link: Link; address: ReplicaAddress }>()
  readonly #accepted = new Set<WebSocket>()
  /** Replicas that could not be asked lately, and since when. */
  readonly #lostAt = new Map<string, number>()
  #closed = false

  constructor(options: DeliveryOptions) {
    this.#options = options
  }

  /** Whether there are others that clients could go to. */
  get hasOthers(): boolean {
    return this.#options.directory.others.size > 0
  }

  /**
   * Whether the pod took the message, here or at another replica. Waits some seconds for a pod that may be back in a
   * moment; never rejects.
   */
  async deliver(podUid: string, message: ServerMessage): Promise<boolean> {
    const { registry, directory } = this.#options
    const present = registry.get(podUid)
    if (present !== undefined) {
      present.send(message)
      return true
    }
    const last = directory.whereIs(podUid)
    if (last !== undefined && (await this.#ask(last, podUid, message, false))) return true
    const asked = [...directory.others.keys()].map((name) => this.#ask(name, podUid, message, true))
    const late = pause(deadlineMs).then(() => false)
    return Promise.race([firstYes([this.#here(podUid, message, firstYes(asked)), ...asked]), late])
  }

  /** Our own channels: waits as long as others are being asked, and for a pod that should be back in a moment. */
  async #here(podUid: string, message: ServerMessage, elsewhere: Promise<boolean>): Promise<boolean> {
    const { registry } = this.#options
    const given = new AbortController()
    void elsewhere.then(async (taken) => {
      const lostAt = Math.max(0, ...this.#lostAt.values())
      if (!taken) await pause(registry.expectedMs(podUid, lostAt))
      given.abort()
    })
    const found = await registry.arrival(podUid, given.signal)
    found?.send(message)
    return found !== undefined
  }

  /** The pod has a channel here now: others drop theirs, and know where it is. */
  tellMoved(podUid: string, from: string | undefined): void {
    const at = Date.now()
    for (const [name, address] of this.#options.directory.others)
      void this.#link(name, address).moved(podUid, at, from)
  }

  /** Passes a sighting on to the replica whose rendezvous it is; false when there is no such replica. */
  tellSighted(owner: string, ticket: string, sighting: RendezvousSighting): boolean {
    const address = this.#options.directory.others.get(owner)
    if (address === undefined) return false
    void this.#link(owner, address).sighted(ticket, sighting)
    return true
  }

  /** Another replica, whose certificate was checked, asks on this connection. */
  accept(socket: WebSocket): void {
    this.#accepted.add(socket)
    socket.on('error', () => socket.terminate())
    socket.once('close', () => this.#accepted.delete(socket))
    socket.on('message', (data) => {
      try {
        this.#onMessage(socket, decodeReplicaMessage(String(data)))
      } catch (error) {
        this.#options.log.error({ error: sentenceOf(error) }, 'a replica asks what we cannot do')
        socket.terminate()
      }
    })
    answer(socket, { type: 'replica', v: 1, name: this.#options.replica })
  }

  close(): void {
    this.#closed = true
    for (const { link } of this.#links.values()) link.close()
    for (const socket of this.#accepted) socket.terminate()
  }

  #onMessage(socket: WebSocket, message: ReplicaMessage): void {
    if (message.type === 'moved') this.#options.onMoved(message.podUid, message.at, message.from)
    else if (message.type === 'sighted') this.#options.onSighted(message.ticket, message.sighting)
    else if (message.type === 'deliver') void this.#onDeliver(socket, message)
    else throw new EdgeMeshError('bad-message', `Cannot take a message ${message.type} on this side.`)
  }

  async #onDeliver(socket: WebSocket, asked: Extract<ReplicaMessage, { type: 'deliver' }>): Promise<void> {
    const { id, podUid, wait, message } = asked
    const present = this.#options.registry.get(podUid)
    present?.send(message)
    const taken =
      present !== undefined || (wait && (await this.#here(podUid, message, Promise.resolve(false))))
    answer(socket, { type: 'delivered', id, taken })
  }

  /** Never rejects: a replica that cannot be asked has not delivered. */
  async #ask(name: string, podUid: string, message: ServerMessage, wait: boolean): Promise<boolean> {
    const { directory, log } = this.#options
    const address = directory.others.get(name)
    if (address === undefined) return false
    try {
      const taken = await this.#link(name, address).deliver(podUid, message, wait)
      this.#lostAt.delete(name)
      if (taken || directory.whereIs(podUid) === name) directory.learn(podUid, taken ? name : undefined)
      return taken
    } catch (error) {
      if (!this.#lostAt.has(name)) this.#lostAt.set(name, performance.now())
      log.debug({ replica: name, error: sentenceOf(error) }, 'cannot ask a replica now')
      return false
    }
  }

  #link(name: string, address: ReplicaAddress): Link {
    const known = this.#links.get(name)
    if (known !== undefined && known.address.host === address.host && known.address.port === address.port)
      return known.link
    known?.link.close()
    const { trustDomain, credentials, log } = this.#options
    const link = new Link({
      name,
      address,
      trustDomain,
      credentials,
      log,
      onLost: () => this.#onLost(name, link),
    })
    this.#links.set(name, { link, address })
    if (this.#closed) link.close()
    return link
  }

  #onLost(name: string, link: Link): void {
    if (this.#links.get(name)?.link !== link) return
    this.#links.delete(name)
    if (!this.#lostAt.has(name)) this.#lostAt.set(name, performance.now())
  }
}

function answer(socket: WebSocket, message: ReplicaMessage): void {
  if (socket.readyState === socket.OPEN) socket.send(JSON.stringify(message))
}

/** True as soon as one is; false once none can be any more. */
function firstYes(answers: Promise<boolean>[]): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>()
  for (const one of answers) void one.then((yes) => yes && resolve(true))
  void Promise.all(answers).then(() => resolve(false))
  return promise
}
