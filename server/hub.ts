import type { Duplex } from 'node:stream'
import type { SecureContextOptions } from 'node:tls'
import type { WebSocket } from 'ws'
import type { CertificateAuthority } from '#shared/authority/certificate-authority.ts'
import type { Endpoint } from '#shared/catalogue.ts'
import { codeOf, EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import type { PodIdentity } from '#shared/identity.ts'
import { withDeadline } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import type { Secret } from '#shared/secret.ts'
import { digestOf } from '#shared/tls.ts'
import { TokenBucket } from '#shared/token-bucket.ts'
import { type Address, type ClientMessage, closeCodes, type ServerMessage } from '#shared/wire.ts'
import { changedEndpoints, changedPods } from './catalogue/history.ts'
import { IndexTexts } from './catalogue/index-texts.ts'
import { type CatalogueSource, type CatalogueState, declaredPorts } from './catalogue/source.ts'
import { Channel, type ChannelOwner } from './control-channel.ts'
import { FanOut } from './fan-out.ts'
import { frameOf } from './frame.ts'
import { Gate } from './gate.ts'
import { Heartbeat } from './heartbeat.ts'
import { type Guest, Meetings, type Participant } from './meetings.ts'
import { Neighbours } from './neighbours.ts'
import { Registry } from './registry.ts'
import type { Relay } from './relay.ts'
import { Delivery } from './replicas/delivery.ts'
import { alone, type Directory } from './replicas/directory.ts'
import type { ServerMetrics } from './server-metrics.ts'
import type { TokenVerifier, VerifiedToken } from './token-verifier/verifier.ts'
import { inTurns, Turnstile } from './turns.ts'

/** Clients ask after 6 s of silence, and take 9 s for the end of the channel. */
const pingEveryMs = 5_000
/** In how many parts: pings of thousands of channels at once would hold up everything else. */
const pingParts = 50
/** How long the verification of a token may take, in ms. */
const verifyDeadlineMs = 10_000
/** Tokens that are verified at once: the API server may take its time for each. */
const maxVerifying = 32
/** Tokens that are found good in one turn of the event loop at most: each brings a certificate, and mostly a welcome. */
const verifiedPerTurn = 8
/** Certificates that are made at once: that costs us time, and the event loop must get its turns. */
const maxIssuing = 4
/** Hellos that wait for their turn: more clients need not come so far before some of these are through. */
const maxHellos = 64
/** Over how long clients are told to come back after a restart, in ms. */
const smearMs = 2_000

/** Channels that one pod may open at once, and in a second in the long run. */
const joinBurst = 100
const joinsPerSecond = 1

export interface HubOptions {
  trustDomain: string
  replica: string
  /** Of pods that ask for none themselves, and the most that one may ask for. */
  leafLifetimeMs: number
  maxLeafLifetimeMs?: number
  source: CatalogueSource
  verifier: TokenVerifier
  authority: CertificateAuthority
  relay: Relay
  metrics: ServerMetrics
  log: Logger
  /** How long a pod is expected back, in ms; see Registry. */
  returnMs?: number
  /** The other replicas, and how to prove to them who we are. */
  directory?: Directory
  credentials?: () => SecureContextOptions
}

/** All control channels: who is present, what each follows, and what changes are sent to whom. */
export class Hub implements ChannelOwner {
  readonly #options: HubOptions
  readonly #registry: Registry
  readonly meetings: Meetings
  readonly #delivery: Delivery
  readonly #neighbours: Neighbours
  /** How often each pod of the catalogue opens channels. */
  readonly #joins = new Map<string, TokenBucket>()
  /** Every open channel, welcomed or not. */
  readonly #channels = new Set<Channel>()
  readonly #index: IndexTexts
  readonly #fanOut: FanOut<Channel>
  readonly #heartbeat = new Heartbeat<Channel>(pingParts)
  readonly #timer: NodeJS.Timeout
  readonly #stopListening: () => void
  /** Messages are encoded once for all that get them. */
  readonly #encoded = new WeakMap<readonly Endpoint[], Buffer>()
  #encodedIndex: { text: string; frame: Buffer } = { text: '', frame: Buffer.alloc(0) }
  /** When thousands come at once, after a restart say. */
  readonly #verifying = new Gate(maxVerifying)
  readonly #verified = new Turnstile(verifiedPerTurn)
  readonly #issuing = new Gate(maxIssuing)

  constructor(options: HubOptions) {
    const { source, metrics } = options
    this.#options = options
    this.#registry = new Registry(options.returnMs)
    this.meetings = new Meetings({
      replica: options.replica,
      tellOwner: (owner, ticket, sighting) => this.#delivery.tellSighted(owner, ticket, sighting),
      metrics,
      log: options.log,
    })
    this.#neighbours = new Neighbours((podUid) => {
      const here = this.#registry.get(podUid)
      return here instanceof Channel ? here : undefined
    })
    this.#delivery = new Delivery({
      ...{ replica: options.replica, trustDomain: options.trustDomain, log: options.log },
      directory: options.directory ?? alone,
      credentials: options.credentials ?? (() => ({})),
      registry: this.#registry,
      onMoved: (podUid, at, from) => this.#onMoved(podUid, at, from),
      onSighted: (ticket, sighting) => this.meetings.onSighted(ticket, sighting),
    })
    this.#index = new IndexTexts(source.state.services)
    this.#fanOut = new FanOut(this.#channels, (channel, { services, pods }) => {
      if (!Number.isFinite(channel.welcomedAt)) return // with its welcome it gets what there is then
      channel.inOne(() => {
        channel.feed.sendChanges(services)
        if (pods.has(channel.podUid)) this.#sendSelf(channel)
      })
    })
    this.#stopListening = source.onChange((next, previous) => this.#onChange(next, previous))
    this.#timer = setInterval(() => {
      for (const channel of this.#heartbeat.next(this.#fanOut.isRunning)) channel.checkAlive()
    }, pingEveryMs / pingParts)
    metrics.gauge('control_channels', 'Open control channels.', () => this.#channels.size)
    metrics.gauge('pods_present', 'Pods with a control channel here.', () => this.#registry.size)
    metrics.natsOf(() => [...this.#channels].flatMap((c) => c.nat ?? []))
    metrics.gauge('catalogue_version', 'Version of the service index.', () => this.#index.version)
    metrics.gauge('catalogue_services', 'Services in the index.', () => source.state.services.size)
  }

  get trustDomain(): string {
    return this.#options.trustDomain
  }

  get replica(): string {
    return this.#options.replica
  }

  get log(): Logger {
    return this.#options.log
  }

  /** Which pods are connected here. */
  present(): { version: number; uids: string[] } {
    return { version: this.#registry.version, uids: [...this.#registry.all()].map((p) => p.podUid) }
  }

  /** `onProven` is called once a token has shown who it is. */
  accept(socket: WebSocket, stream: Duplex, observed?: Address, onProven?: () => void): void {
    const channel = new Channel(socket, stream, this, observed, onProven)
    this.#channels.add(channel)
    this.#heartbeat.add(channel)
  }

  /** A connection of another replica, whose certificate was checked. */
  acceptReplica(socket: WebSocket): void {
    this.#delivery.accept(socket)
  }

  /** Channels that are open, welcomed or not. */
  get channels(): number {
    return this.#channels.size
  }

  /** Whether clients that are told to go have somewhere to go to. */
  get hasOthers(): boolean {
    return this.#delivery.hasOthers
  }

  /** Whether many are through their handshake and wait for their welcome. */
  get isBusy(): boolean {
    return this.#verifying.waiting + this.#verified.waiting + this.#issuing.waiting >= maxHellos
  }

  /** Whether another replica is known by that address: its links wait for nobody. */
  isReplica(address: string | undefined): boolean {
    const others = this.#options.directory?.others.values() ?? []
    return [...others].some(({ host }) => host === address?.replace(/^::ffff:/, ''))
  }

  /** Brings a message to a pod, here or at another replica; false when it is nowhere. Never rejects. */
  deliver(podUid: string, message: ServerMessage): Promise<boolean> {
    return this.#delivery.deliver(podUid, message)
  }

  /**
   * Tells every client to go elsewhere within `withinMs`, smeared over them. Their channels are served until they have
   * another one, so that nobody is without a server in between.
   */
  sendAway(withinMs: number): Promise<void> {
    return inTurns(this.#channels, (channel) => channel.send(goingAway(withinMs)))
  }

  /** Closes every channel, with when to come back. */
  async goAway(): Promise<void> {
    clearInterval(this.#timer)
    this.meetings.close()
    this.#stopListening()
    await inTurns(this.#channels, (channel) =>
      channel.inOne(() => {
        channel.send(goingAway(smearMs))
        channel.end(closeCodes.goingAway, 'stopping', 'the server is going away')
      }),
    )
    this.#delivery.close()
  }

  readonly verify = (token: Secret, isWanted: () => boolean): Promise<VerifiedToken> =>
    this.#verifying.run(async () => {
      if (!isWanted()) throw new EdgeMeshError('not-connected', 'Cannot verify the token: its sender left.')
      const { verifier } = this.#options
      const verified = await withDeadline(verifier.verify(token), verifyDeadlineMs, 'verify the token')
      await this.#verified.pass()
      return verified
    })

  readonly admit = (token: VerifiedToken): PodIdentity => {
    const { trustDomain, source } = this.#options
    const pod = source.state.pods.get(token.podUid)
    const known =
      pod !== undefined &&
      pod.namespace === token.namespace &&
      pod.name === token.podName &&
      pod.serviceAccount === token.serviceAccount &&
      !pod.finished
    if (known)
      return { trustDomain, namespace: pod.namespace, serviceAccount: pod.serviceAccount, podUid: pod.uid }
    throw new EdgeMeshError(
      'forbidden',
      `Cannot admit pod ${token.namespace}/${token.podName}: the catalogue knows no such running pod with uid ${token.podUid}.`,
    )
  }

  readonly isCurrent = (bundleDigest: string): boolean =>
    digestOf(this.#options.authority.trustBundle) === bundleDigest

  readonly mayJoin = (podUid: string): boolean => {
    const joins = this.#joins.get(podUid) ?? new TokenBucket(joinBurst, joinsPerSecond)
    this.#joins.set(podUid, joins)
    return joins.take()
  }

  readonly issue = async (identity: PodIdentity, publicKey: string, isWanted: () => boolean) => {
    const { authority, source, leafLifetimeMs, maxLeafLifetimeMs = Number.POSITIVE_INFINITY } = this.#options
    const asked = source.state.pods.get(identity.podUid)?.leafLifetimeMs
    const lifetimeMs = asked === undefined ? leafLifetimeMs : Math.min(asked, maxLeafLifetimeMs)
    const certificate = await this.#issuing.run(async () => {
      // Who has waited too long has left, and comes again: signing for those would take the time of all others.
      if (!isWanted()) throw new EdgeMeshError('not-connected', 'Cannot issue a certificate: its asker left.')
      return authority.issue(identity, publicKey, lifetimeMs)
    })
    this.#options.metrics.certificates.inc()
    return certificate
  }

  onWelcome(channel: Channel, resume: { epoch: string; version: number } | undefined): void {
    const before = this.#registry.take(channel)
    before?.end(closeCodes.replaced, 'replaced', 'another channel of this pod took over')
    this.#delivery.tellMoved(channel.podUid, channel.observed?.address)
    this.#remind(channel.podUid)
    channel.feed.sendIndex(this.#index.knownTo(resume))
    this.#sendSelf(channel)
    this.log.info({ pod: channel.podUid, present: this.#registry.size }, 'pod connected')
  }

  /** Never rejects. The dialer may be gone once the acceptor is back: then nothing is issued. */
  async onRelay(
    channel: Channel,
    { id, podUid, unlessNear = false }: Extract<ClientMessage, { type: 'relay' }>,
  ): Promise<void> {
    const fail = (code: 'peer-absent' | 'forbidden' | 'limit' | 'near', message: string) =>
      channel.send({ type: 'failed', id, code, message })
    const acceptor = this.#identityOf(podUid)
    if (channel.identity === undefined || acceptor === undefined)
      return fail('peer-absent', 'the catalogue knows no such pod')
    if (podUid === channel.podUid) return fail('forbidden', 'a pod does not need the relay to itself')
    if (unlessNear && this.#neighbours.areNear(channel, podUid))
      return fail('near', 'the pod comes from the same public address')
    try {
      const tickets = this.#options.relay.issue(channel.identity, acceptor)
      const { podUid: from } = channel
      const taken = await this.#delivery.deliver(podUid, { type: 'incoming', ticket: tickets.acceptor, from })
      if (taken && channel.open) channel.send({ type: 'ticket', id, ticket: tickets.dialer })
      else this.#options.relay.cancel(tickets.dialer)
      if (!taken) fail('peer-absent', 'the pod is not connected to the server')
    } catch (error) {
      fail('limit', sentenceOf(error)) // the one reason that the relay has
    }
  }

  /** Never rejects. Whom a pod may not reach by the relay it is told no address of. */
  async onPunch(
    channel: Channel,
    { id, podUid, attempt }: Extract<ClientMessage, { type: 'punch' }>,
  ): Promise<void> {
    const known = this.#options.source.state.pods.has(podUid)
    const fail = (code: 'peer-absent' | 'forbidden' | 'limit' | 'hopeless', message: string) =>
      channel.send({ type: 'unpunched', id, code, message })
    if (podUid === channel.podUid) return fail('forbidden', 'a pod does not punch to itself')
    const here = !known || this.hasOthers ? this.#registry.get(podUid) : await this.#registry.find(podUid)
    if (!channel.open) return
    const acceptor = here instanceof Channel ? here : known ? this.#elsewhere(podUid) : undefined
    if (acceptor === undefined) return fail('peer-absent', 'the pod is not connected to the server')
    try {
      this.meetings.call(this.#guest(channel), this.#guest(acceptor), id, attempt)
    } catch (error) {
      fail(codeOf(error) === 'limit' ? 'limit' : 'hopeless', sentenceOf(error))
    }
  }

  /** A pod that may be connected to another replica, which then sees it come. */
  #elsewhere(podUid: string): Participant | undefined {
    if (!this.hasOthers) return undefined
    const send = (message: ServerMessage) => void this.#delivery.deliver(podUid, message)
    return { podUid, observed: undefined, nat: undefined, send }
  }

  #guest(participant: Participant): Guest {
    const pod = this.#options.source.state.pods.get(participant.podUid)
    return { participant, addresses: { podIPs: pod?.ips ?? [], hostIPs: pod?.hostIPs ?? [] } }
  }

  onPunched(channel: Channel, { ticket, open, met }: Extract<ClientMessage, { type: 'punched' }>): void {
    this.meetings.onResult(channel, ticket, open, met)
  }

  onBye(channel: Channel): void {
    this.#registry.leave(channel)
  }

  onClose(channel: Channel): void {
    this.#channels.delete(channel)
    this.#heartbeat.delete(channel)
    this.#registry.leave(channel, true)
    if (channel.identity !== undefined)
      this.log.info({ pod: channel.podUid, present: this.#registry.size }, 'pod left')
  }

  onRefused(code: string): void {
    this.#options.metrics.refusals.inc({ reason: code })
  }

  /** Joins that were asked for on a channel that had died already need not wait until their time is up. */
  #remind(podUid: string): void {
    for (const { ticket, from } of this.#options.relay.awaitedOf(podUid))
      void this.#delivery.deliver(podUid, { type: 'incoming', ticket, from })
  }

  /** The pod has come up at another replica: the channel here is an old one, whether it knows or not. */
  #onMoved(podUid: string, at: number, from: string | undefined): void {
    this.#neighbours.onMoved(podUid, from)
    const here = this.#registry.get(podUid)
    if (here instanceof Channel && here.welcomedAt < at) {
      this.#registry.leave(here) // first, or the dead channel would be reminded
      here.end(closeCodes.replaced, 'replaced', 'another channel of this pod took over')
    }
    this.#remind(podUid)
  }

  #identityOf(podUid: string): PodIdentity | undefined {
    const { source, trustDomain } = this.#options
    const pod = source.state.pods.get(podUid)
    if (pod === undefined) return undefined
    return { trustDomain, namespace: pod.namespace, serviceAccount: pod.serviceAccount, podUid }
  }

  #onChange(next: CatalogueState, previous: CatalogueState): void {
    this.#index.advance(next.services)
    const services = changedEndpoints(previous.endpoints, next.endpoints)
    this.#fanOut.onChange({ services, pods: changedPods(services, previous, next) })
    if (next.pods !== previous.pods) this.#onPodsChange(next)
  }

  #onPodsChange(next: CatalogueState): void {
    for (const channel of this.#channels)
      if (channel.identity !== undefined && next.pods.get(channel.podUid)?.finished !== false)
        this.#evict(channel)
    for (const podUid of this.#joins.keys()) if (!next.pods.has(podUid)) this.#joins.delete(podUid)
    this.#options.relay.revokeAllBut((uid) => next.pods.get(uid)?.finished === false)
  }

  /** A deleted pod loses its channel, its presence and its relayed connections at once. */
  #evict(channel: Channel): void {
    this.#registry.leave(channel)
    this.#options.relay.revoke(channel.podUid)
    channel.end(closeCodes.podUnknown, 'forbidden', 'the pod is deleted')
  }

  #sendSelf(channel: Channel): void {
    const ports = declaredPorts(this.#options.source.state, channel.podUid)
    const text = ports.join()
    if (text === channel.selfPorts) return
    channel.selfPorts = text
    channel.send({ type: 'self', ports })
  }

  get indexVersion(): number {
    return this.#index.version
  }

  indexFrame(known: number): Buffer {
    const text = this.#index.since(known)
    if (text !== this.#encodedIndex.text) this.#encodedIndex = { text, frame: frameOf(text) }
    return this.#encodedIndex.frame
  }

  readonly endpointsFrame = (service: string): Buffer => {
    const endpoints = this.#options.source.state.endpoints.get(service) ?? noEndpoints
    const known = this.#encoded.get(endpoints)
    // Shared by identity of the list: lists of services without endpoints are one and the same, so not these.
    if (known !== undefined) return known
    const text = JSON.stringify({ type: 'endpoints', service, endpoints } satisfies ServerMessage | object)
    const frame = frameOf(text)
    if (endpoints !== noEndpoints) this.#encoded.set(endpoints, frame)
    return frame
  }
}

const noEndpoints: readonly Endpoint[] = []

function goingAway(withinMs: number): ServerMessage {
  return { type: 'goingAway', comeBackMs: Math.floor(Math.random() * withinMs) }
}
