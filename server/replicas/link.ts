import type { SecureContextOptions, TLSSocket } from 'node:tls'
import WebSocket from 'ws'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { isServerCertificate, serverNameOf } from '#shared/identity.ts'
import { withDeadline } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import { tlsFloor } from '#shared/tls.ts'
import {
  decodeReplicaMessage,
  type RendezvousSighting,
  type ReplicaMessage,
  replicaPath,
  replicaProtocol,
  type ServerMessage,
} from '#shared/wire.ts'
import type { ReplicaAddress } from './directory.ts'

/** A replica that lives answers in milliseconds; clients wait five seconds for a ticket. */
const connectDeadlineMs = 1_000
/** The other one may itself wait three seconds for a pod that is coming back. */
const answerDeadlineMs = 3_400
/** A link that was silent for so long is asked whether it lives, and given up at the next time, in ms. */
const pingEveryMs = 5_000
const maxFrame = 256 * 1024
/** Questions to one replica that wait for their answer. */
const maxPending = 4_000
/** Bytes that the other one may leave unread. */
const maxUnread = 4 * 1024 * 1024

export interface LinkOptions {
  name: string
  address: ReplicaAddress
  trustDomain: string
  /** The server's own key and certificate, and the roots. */
  credentials: () => SecureContextOptions
  /** The link is gone; the next question makes another. */
  onLost: () => void
  log: Logger
}

/** Our questions to one other replica. Both are sure of the other: each shows the server's certificate. */
export class Link {
  readonly #options: LinkOptions
  readonly #socket: WebSocket
  readonly #opened = Promise.withResolvers<void>()
  readonly #pending = new Map<number, (taken: boolean) => void>()
  readonly #timer: NodeJS.Timeout
  #heard = true
  #lastId = 0

  constructor(options: LinkOptions) {
    this.#options = options
    const { address, trustDomain, credentials } = options
    const host = address.host.includes(':') ? `[${address.host}]` : address.host
    const tls = { ...tlsFloor, ...credentials(), servername: serverNameOf(trustDomain) }
    this.#socket = new WebSocket(`wss://${host}:${address.port}${replicaPath}`, replicaProtocol, {
      ...tls,
      handshakeTimeout: connectDeadlineMs,
      maxPayload: maxFrame,
      perMessageDeflate: false,
    })
    this.#timer = setInterval(() => this.#checkAlive(), pingEveryMs)
    this.#opened.promise.catch(() => undefined) // told to those who ask
    this.#listen()
  }

  /** Whether the pod was there and took the message; rejects when the replica cannot be asked. */
  async deliver(podUid: string, message: ServerMessage, wait: boolean): Promise<boolean> {
    await withDeadline(this.#opened.promise, connectDeadlineMs, `reach replica ${this.#options.name}`)
    if (this.#pending.size >= maxPending)
      throw new EdgeMeshError('limit', `Cannot ask replica ${this.#options.name}: too many questions wait.`)
    this.#lastId = (this.#lastId % 1_000_000_000) + 1
    const id = this.#lastId
    const { promise, resolve } = Promise.withResolvers<boolean>()
    this.#pending.set(id, resolve)
    try {
      this.#send({ type: 'deliver', id, podUid, wait, message })
      return await withDeadline(promise, answerDeadlineMs, `ask replica ${this.#options.name}`)
    } finally {
      this.#pending.delete(id)
    }
  }

  /** Tells that the pod has a channel here now. Never rejects: the pod's old channel ends anyway, later. */
  async moved(podUid: string, at: number, from: string | undefined): Promise<void> {
    await this.#opened.promise.then(
      () => this.#send({ type: 'moved', podUid, at, ...(from !== undefined && { from }) }),
      () => undefined,
    )
  }

  /** Tells what we saw of a pod that came to a rendezvous of theirs. Never rejects: a rendezvous may fail. */
  async sighted(ticket: string, sighting: RendezvousSighting): Promise<void> {
    await this.#opened.promise.then(
      () => this.#send({ type: 'sighted', ticket, sighting }),
      () => undefined,
    )
  }

  close(): void {
    this.#socket.terminate()
  }

  #listen(): void {
    const { name, trustDomain, log, onLost } = this.#options
    const socket = this.#socket
    socket.on('upgrade', (response) => {
      if (!isServerCertificate((response.socket as TLSSocket).getPeerX509Certificate(), trustDomain))
        socket.terminate()
    })
    socket.on('message', (data) => {
      this.#heard = true
      try {
        this.#onMessage(decodeReplicaMessage(String(data)))
      } catch (error) {
        log.error({ replica: name, error: sentenceOf(error) }, 'a replica sent what we cannot take')
        socket.terminate()
      }
    })
    socket.on('pong', () => {
      this.#heard = true
    })
    socket.on('error', (error) => this.#opened.reject(error))
    socket.once('close', () => {
      clearInterval(this.#timer)
      this.#opened.reject(new EdgeMeshError('not-connected', `Cannot ask replica ${name}: it is away.`))
      for (const resolve of this.#pending.values()) resolve(false)
      onLost()
    })
  }

  #onMessage(message: ReplicaMessage): void {
    const { name } = this.#options
    if (message.type === 'delivered') this.#pending.get(message.id)?.(message.taken)
    else if (message.type !== 'replica')
      throw new EdgeMeshError('bad-message', `Cannot take a message ${message.type} on this side.`)
    else if (message.name === name) this.#opened.resolve()
    else
      throw new EdgeMeshError('identity-mismatch', `Cannot ask ${name}: ${message.name} is at its address.`)
  }

  #send(message: ReplicaMessage): void {
    if (this.#socket.readyState !== WebSocket.OPEN) return
    this.#socket.send(JSON.stringify(message))
    if (this.#socket.bufferedAmount > maxUnread) this.#socket.terminate()
  }

  #checkAlive(): void {
    if (!this.#heard) this.#socket.terminate()
    this.#heard = false
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.ping()
  }
}
