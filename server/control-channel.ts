import type { Duplex } from 'node:stream'
import type { WebSocket } from 'ws'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import type { PodIdentity } from '#shared/identity.ts'
import type { Logger } from '#shared/log.ts'
import { natOf } from '#shared/nat.ts'
import { Secret } from '#shared/secret.ts'
import { isProofValid } from '#shared/tls.ts'
import { TokenBucket } from '#shared/token-bucket.ts'
import {
  type Address,
  type CertificateRequest,
  type ClientMessage,
  closeCodes,
  decodeClientMessage,
  type IssuedCertificate,
  type ServerMessage,
} from '#shared/wire.ts'
import { Feed, type FeedSource } from './feed.ts'
import type { Participant } from './meetings.ts'
import type { Presence } from './registry.ts'
import type { NatKnowledge } from './rendezvous.ts'
import type { VerifiedToken } from './token-verifier/verifier.ts'

/** How long a connection may be without its hello, in ms. What waits for us afterwards is not the client's fault. */
const helloDeadlineMs = 10_000
/** Messages of one client that wait to be handled. */
const maxQueued = 600
export interface ChannelOwner extends FeedSource {
  readonly trustDomain: string
  readonly replica: string
  readonly log: Logger
  /** In its turn; gives up with `not-connected` when nobody waits for it any more. */
  verify(token: Secret, isWanted: () => boolean): Promise<VerifiedToken>
  /** The pod's identity when the catalogue knows such a pod now; else `forbidden`. */
  admit(token: VerifiedToken): PodIdentity
  /** Whether certificates that came with a trust bundle of this digest are what we would issue now. */
  isCurrent(bundleDigest: string): boolean
  /** False when the pod opens channels more often than any that works would. */
  mayJoin(podUid: string): boolean
  /** In its turn, and as long as it is wanted, as `verify`. */
  issue(identity: PodIdentity, publicKey: string, isWanted: () => boolean): Promise<IssuedCertificate>
  /** The channel has its identity: takes its place and sends what it missed. */
  onWelcome(channel: Channel, resume: { epoch: string; version: number } | undefined): void
  onRelay(channel: Channel, message: Extract<ClientMessage, { type: 'relay' }>): Promise<void>
  onPunch(channel: Channel, request: Extract<ClientMessage, { type: 'punch' }>): Promise<void>
  onPunched(channel: Channel, message: Extract<ClientMessage, { type: 'punched' }>): void
  onBye(channel: Channel): void
  onClose(channel: Channel): void
  onRefused(code: string): void
}

/** The server's end of one control channel. Messages are handled in order; nothing is served before the hello. */
export class Channel implements Presence, Participant {
  readonly #socket: WebSocket
  /** What it runs over. */
  readonly #stream: Duplex
  readonly #owner: ChannelOwner
  readonly feed: Feed
  /** Where the connection comes from, as we see it. */
  readonly observed: Address | undefined
  nat: NatKnowledge | undefined
  /** Ports last sent, as text, to see whether they changed; nothing has been sent at first, not even that there are none. */
  selfPorts: string | undefined
  /** In ms since the epoch; infinite before it is. */
  welcomedAt = Number.POSITIVE_INFINITY
  #onProven: (() => void) | undefined
  #identity: PodIdentity | undefined
  #queue: Promise<void> = Promise.resolve()
  #queued = 0
  #heard = true
  #helloLate: NodeJS.Timeout | undefined
  /** All messages and pings, renewals, relay requests: a broken client slows down only itself. */
  readonly #messages = new TokenBucket(2_000, 200)
  readonly #renewals = new TokenBucket(5, 1 / 10)
  readonly #relays = new TokenBucket(200, 50)
  readonly #punches = new TokenBucket(50, 5)

  constructor(
    socket: WebSocket,
    stream: Duplex,
    owner: ChannelOwner,
    observed?: Address,
    onProven?: () => void,
  ) {
    this.#socket = socket
    this.#stream = stream
    this.#onProven = onProven
    this.observed = observed
    this.#owner = owner
    this.feed = new Feed(socket, stream, owner)
    const late = setTimeout(
      () => this.end(closeCodes.unauthenticated, 'timeout', 'no hello came in time'),
      helloDeadlineMs,
    )
    socket.on('message', (data, isBinary) => this.#onData(String(data), isBinary))
    socket.on('ping', () => this.#allow())
    socket.on('pong', () => {
      this.#heard = true
    })
    socket.on('error', (error) =>
      owner.log.debug({ pod: this.podUid, error: sentenceOf(error) }, 'control channel broke'),
    )
    socket.once('close', () => {
      clearTimeout(late)
      owner.onClose(this)
    })
    this.#helloLate = late
  }

  /** Empty before the hello. */
  get podUid(): string {
    return this.#identity?.podUid ?? ''
  }

  get open(): boolean {
    return this.#socket.readyState === this.#socket.OPEN
  }

  get identity(): PodIdentity | undefined {
    return this.#identity
  }

  send(message: ServerMessage): void {
    if (!this.open) return
    this.#socket.send(JSON.stringify(message), this.feed.onRead)
    if (this.feed.isTooMuch) this.#socket.terminate()
  }

  /** What is sent meanwhile goes in one write: in one TLS record, and one call of the kernel. */
  inOne(send: () => void): void {
    this.#stream.cork()
    try {
      send()
    } finally {
      this.#stream.uncork()
    }
  }

  /** Counts a message or ping; one too many ends the channel. */
  #allow(): boolean {
    if (this.#messages.take()) return true
    this.#limit('too many messages in a short time')
    return false
  }

  #limit(message: string): void {
    this.#owner.onRefused('limit')
    this.end(closeCodes.limit, 'limit', message)
  }

  end(code: number, error: string, message: string): void {
    if (!this.open) return
    this.send({ type: 'error', code: error, message })
    this.#socket.close(code)
    setTimeout(() => this.#socket.terminate(), 1_000).unref() // it need not answer the close
  }

  /** Called at intervals: a client that did not answer the last ping is gone. */
  checkAlive(): void {
    if (!this.#heard) this.#socket.terminate()
    this.#heard = false
    if (this.open) this.#socket.ping()
  }

  #onData(text: string, isBinary: boolean): void {
    if (!this.open || !this.#allow()) return
    this.#queued++
    if (this.#queued > maxQueued) {
      this.#limit('too many messages at once')
      return
    }
    this.#queue = this.#queue.then(async () => {
      this.#queued--
      if (!this.open) return
      try {
        if (isBinary) throw new EdgeMeshError('bad-message', 'Cannot read the message: it is binary.')
        await this.#onMessage(decodeClientMessage(text))
      } catch (error) {
        this.#refuse(error)
      }
    })
  }

  #refuse(error: unknown): void {
    const code = error instanceof EdgeMeshError ? error.code : 'internal'
    if (code === 'not-connected') return // it left before its turn
    this.#owner.onRefused(code)
    this.#owner.log.warn({ pod: this.podUid, code, error: sentenceOf(error) }, 'refused a control channel')
    const close = {
      'bad-message': closeCodes.badMessage,
      unauthenticated: closeCodes.unauthenticated,
      forbidden: closeCodes.podUnknown,
      limit: closeCodes.limit,
    }[code as string]
    this.end(
      close ?? closeCodes.unauthenticated,
      code,
      code === 'internal' ? 'internal error' : sentenceOf(error),
    )
  }

  async #onMessage(message: ClientMessage): Promise<void> {
    if (message.type === 'hello') {
      if (this.#identity !== undefined) throw new EdgeMeshError('bad-message', 'Cannot take a second hello.')
      await this.#onHello(message)
      return
    }
    if (this.#identity === undefined)
      throw new EdgeMeshError('unauthenticated', 'Cannot serve anyone before the hello.')
    switch (message.type) {
      case 'renew':
        if (!this.#renewals.take()) throw new EdgeMeshError('limit', 'Cannot renew that often.')
        this.send({ type: 'certificate', certificate: await this.#renew(message.request, this.#identity) })
        break
      case 'subscribe':
        this.feed.subscribe(message.service)
        break
      case 'unsubscribe':
        this.feed.unsubscribe(message.service)
        break
      case 'relay':
        if (this.#relays.take()) void this.#owner.onRelay(this, message)
        else this.send({ type: 'failed', id: message.id, code: 'limit', message: 'too many relay requests' })
        break
      case 'punch':
        if (this.#punches.take()) void this.#owner.onPunch(this, message)
        else this.send({ type: 'unpunched', id: message.id, code: 'limit', message: 'too many rendezvous' })
        break
      case 'punched':
        this.#owner.onPunched(this, message)
        break
      case 'bye':
        this.#owner.onBye(this)
        break
    }
  }

  async #onHello(hello: Extract<ClientMessage, { type: 'hello' }>): Promise<void> {
    clearTimeout(this.#helloLate)
    const verified = await this.#verify(hello.request)
    if (!this.#owner.mayJoin(verified.podUid))
      throw new EdgeMeshError('limit', 'Cannot open control channels that often.')
    const isCertified = hello.certifiedBy !== undefined && this.#owner.isCurrent(hello.certifiedBy)
    const certificate = isCertified ? undefined : await this.#issue(hello.request, verified)
    this.#identity = this.#owner.admit(verified) // the pod may have been deleted meanwhile
    // Closed meanwhile: its close has been dealt with, so the place that it took now would never be left.
    if (!this.open) return
    this.#onProven?.()
    this.#onProven = undefined
    this.#locate(hello)
    this.welcomedAt = Date.now()
    this.inOne(() => {
      this.#welcome(certificate)
      this.#owner.onWelcome(this, hello.resume)
      for (const service of hello.subscriptions) this.feed.subscribe(service)
    })
  }

  #welcome(certificate: IssuedCertificate | undefined): void {
    const { trustDomain, replica } = this.#owner
    const observed = this.observed === undefined ? {} : { observed: this.observed }
    const issued = certificate === undefined ? {} : { certificate }
    this.send({ type: 'welcome', v: 1, trustDomain, replica, ...issued, ...observed })
  }

  /** What the hello and the connection itself say of the pod's NAT. */
  #locate({ podIPs, localPort }: Extract<ClientMessage, { type: 'hello' }>): void {
    if (localPort === undefined || this.observed === undefined) return
    const nat = natOf([{ localPort, observed: this.observed }], podIPs)
    if (nat !== undefined) this.nat = { ...nat, filtering: 'unknown' }
  }

  /** Only the same pod's tokens will do from the first time on. */
  async #renew(request: CertificateRequest, { podUid }: PodIdentity): Promise<IssuedCertificate> {
    const verified = await this.#verify(request)
    if (verified.podUid !== podUid)
      throw new EdgeMeshError('unauthenticated', 'Cannot renew with the token of another pod.')
    const certificate = await this.#issue(request, verified)
    this.#identity = this.#owner.admit(verified)
    return certificate
  }

  #verify({ token }: CertificateRequest): Promise<VerifiedToken> {
    return this.#owner.verify(new Secret(token), this.#isWanted)
  }

  async #issue(request: CertificateRequest, verified: VerifiedToken): Promise<IssuedCertificate> {
    const { admit, issue } = this.#owner
    if (!isProofValid(request)) {
      throw new EdgeMeshError('unauthenticated', 'Cannot certify the key: the proof of possession is wrong.')
    }
    return issue(admit(verified), request.publicKey, this.#isWanted)
  }

  readonly #isWanted = () => this.open
}
