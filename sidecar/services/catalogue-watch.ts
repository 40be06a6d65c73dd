import type { Endpoint } from '#shared/catalogue.ts'
import { EdgeMeshError } from '#shared/errors.ts'
import type { ClientMessage, ServerMessage } from '#shared/wire.ts'
import type { Catalogue } from './catalogue.ts'

/** Services subscribed at once; the least recently used one makes room. The server's own bound is the same. */
const maxSubscriptions = 500
/** A service that was not used for so long is unsubscribed, in ms. */
const idleMs = 10 * 60_000
/** How long a first connection waits for the endpoints of its service, in ms. */
const firstEndpointsMs = 5_000

interface Subscription {
  usedAt: number
  /** Resolved by the first endpoints; undefined once they are known. */
  waiting: PromiseWithResolvers<void> | undefined
}

type CatalogueMessage = Extract<ServerMessage, { type: 'index' | 'endpoints' | 'self' }>

/**
 * Names are pushed, endpoints are pulled: keeps the catalogue in step with the server, and subscribes to the
 * endpoints of just those services that this pod uses. What is known stays in use while the server is away.
 */
export class CatalogueWatch {
  readonly #catalogue: Catalogue
  readonly #send: (message: ClientMessage) => boolean
  readonly #resync: () => void
  readonly #subscriptions = new Map<string, Subscription>()
  readonly #timer: NodeJS.Timeout

  /** `send` returns false while the server is away; `resync` starts over with a new hello. */
  constructor(catalogue: Catalogue, send: (message: ClientMessage) => boolean, resync: () => void) {
    this.#catalogue = catalogue
    this.#send = send
    this.#resync = resync
    for (const id of catalogue.knownEndpoints())
      this.#subscriptions.set(id, { usedAt: performance.now(), waiting: undefined })
    this.#timer = setInterval(() => this.#dropIdle(performance.now()), idleMs / 10)
    this.#timer.unref()
  }

  close(): void {
    clearInterval(this.#timer)
  }

  get subscriptions(): number {
    return this.#subscriptions.size
  }

  hello(): Pick<Extract<ClientMessage, { type: 'hello' }>, 'resume' | 'subscriptions'> {
    const { resume } = this.#catalogue
    return { ...(resume === undefined ? {} : { resume }), subscriptions: [...this.#subscriptions.keys()] }
  }

  onMessage(message: CatalogueMessage): void {
    if (message.type === 'self') this.#catalogue.applySelf(message.ports)
    else if (message.type === 'index') this.#onIndex(message)
    else if (this.#subscriptions.has(message.service)) {
      this.#catalogue.applyEndpoints(message.service, message.endpoints)
      this.#settle(message.service)
    }
  }

  /** The service was named: its endpoints will be wanted, so ask for them now. */
  used(id: string): void {
    const known = this.#subscriptions.get(id)
    if (known !== undefined) {
      known.usedAt = performance.now()
      return
    }
    if (this.#subscriptions.size >= maxSubscriptions) this.#dropLeastUsed()
    const waiting = Promise.withResolvers<void>()
    this.#subscriptions.set(id, { usedAt: performance.now(), waiting })
    this.#send({ type: 'subscribe', service: id })
  }

  /** The endpoints of a service: at once when known, else as soon as the server sends them. */
  async endpoints(id: string, signal: AbortSignal): Promise<readonly Endpoint[]> {
    this.used(id)
    const waiting = this.#subscriptions.get(id)?.waiting
    if (waiting !== undefined)
      await firstOf(waiting.promise, AbortSignal.any([signal, AbortSignal.timeout(firstEndpointsMs)]))
    const endpoints = this.#catalogue.endpointsOf(id)
    if (endpoints !== undefined) return endpoints
    throw new EdgeMeshError(
      'no-endpoint',
      `Cannot reach service ${id}: its endpoints are not known while the server is away.`,
    )
  }

  #onIndex(message: Extract<ServerMessage, { type: 'index' }>): void {
    if (this.#catalogue.applyIndex(message) === 'resync') this.#resync()
    for (const id of message.removes) this.#unsubscribe(id)
  }

  #settle(id: string): void {
    const subscription = this.#subscriptions.get(id)
    subscription?.waiting?.resolve()
    if (subscription !== undefined) subscription.waiting = undefined
  }

  #unsubscribe(id: string): void {
    this.#settle(id)
    if (!this.#subscriptions.delete(id)) return
    this.#catalogue.forget(id)
    this.#send({ type: 'unsubscribe', service: id })
  }

  #dropIdle(now: number): void {
    for (const [id, { usedAt }] of this.#subscriptions) if (now - usedAt > idleMs) this.#unsubscribe(id)
  }

  #dropLeastUsed(): void {
    const [least] = [...this.#subscriptions].sort(([, a], [, b]) => a.usedAt - b.usedAt)
    if (least !== undefined) this.#unsubscribe(least[0])
  }
}

/** Settles when either does; a signal that aborts is no error here. */
function firstOf(promise: Promise<void>, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve()
  const { promise: aborted, resolve } = Promise.withResolvers<void>()
  const onAbort = () => resolve()
  signal.addEventListener('abort', onAbort, { once: true })
  return Promise.race([promise, aborted]).finally(() => signal.removeEventListener('abort', onAbort))
}
