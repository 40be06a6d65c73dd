import type { Writable } from 'node:stream'
import type { WebSocket } from 'ws'
import { EdgeMeshError } from '#shared/errors.ts'

/**
 * Bytes that a client may leave unread, beyond one message of the catalogue: more of the catalogue waits until it has
 * read, and of each thing only the latest state; all other messages are small, and beyond this it is cut off.
 */
const maxUnread = 1024 * 1024
const maxUnreadInAll = 4 * maxUnread
const maxSubscriptions = 500

/** The catalogue as it is now, as frames of messages. */
export interface FeedSource {
  endpointsFrame(service: string): Buffer
  /** What brings who knows that version of the index to the present one; 0: knows none. */
  indexFrame(known: number): Buffer
  readonly indexVersion: number
}

/** What one client gets of the catalogue: at once while it reads, else the latest state once it has read. */
export class Feed {
  readonly #socket: WebSocket
  readonly #stream: Writable
  readonly #source: FeedSource
  readonly #subscriptions = new Set<string>()
  /** What the client will get once it has read: services by name, and of the index all beyond this version. */
  readonly #owed = new Set<string>()
  #indexVersion: number | undefined
  /** The largest message of the catalogue that may be unread. */
  #largest = 0

  /** `stream`: what the socket runs over. */
  constructor(socket: WebSocket, stream: Writable, source: FeedSource) {
    this.#socket = socket
    this.#stream = stream
    this.#source = source
  }

  /** Whether so much is unread that the client must be cut off. */
  get isTooMuch(): boolean {
    return this.#socket.bufferedAmount > maxUnreadInAll + this.#largest
  }

  /** To be called whenever the client has read something, of the catalogue or not. */
  readonly onRead = (): void => {
    if (!this.#takesMore) return
    this.#sendIndexChange()
    for (const service of this.#owed) {
      if (!this.#takesMore) return
      this.#owed.delete(service)
      if (this.#subscriptions.has(service)) this.#send(this.#source.endpointsFrame(service))
    }
  }

  /** Throws `limit` when the client follows too many. */
  subscribe(service: string): void {
    if (this.#subscriptions.size >= maxSubscriptions && !this.#subscriptions.has(service))
      throw new EdgeMeshError('limit', `Cannot follow more than ${maxSubscriptions} services.`)
    this.#subscriptions.add(service)
    this.#sendEndpoints(service)
  }

  unsubscribe(service: string): void {
    this.#subscriptions.delete(service)
  }

  /** The first of the index: what the client lacks that knows this version; 0: that knows none. */
  sendIndex(known: number): void {
    this.#indexVersion = this.#source.indexVersion
    this.#send(this.#source.indexFrame(known))
  }

  /** What has changed of the catalogue, these endpoints among it, as far as it is the client's. */
  sendChanges(services: ReadonlySet<string>): void {
    this.#sendIndexChange()
    const followed = this.#subscriptions
    const [fewer, more] = services.size < followed.size ? [services, followed] : [followed, services]
    for (const service of fewer) if (more.has(service)) this.#sendEndpoints(service)
  }

  get #takesMore(): boolean {
    return this.#socket.readyState === this.#socket.OPEN && this.#socket.bufferedAmount <= maxUnread
  }

  #sendEndpoints(service: string): void {
    if (!this.#takesMore || this.#owed.size > 0) this.#owed.add(service)
    else this.#send(this.#source.endpointsFrame(service))
  }

  #sendIndexChange(): void {
    const known = this.#indexVersion
    if (known !== undefined && known !== this.#source.indexVersion && this.#takesMore) this.sendIndex(known)
  }

  #send(frame: Buffer): void {
    if (this.#socket.readyState !== this.#socket.OPEN) return
    this.#largest = Math.max(this.#largest, frame.length)
    this.#stream.write(frame, this.onRead)
  }
}
