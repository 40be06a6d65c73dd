import { readFileSync } from 'node:fs'
import { networkInterfaces } from 'node:os'
import type { Duplex } from 'node:stream'
import { listenAdmin } from '#shared/admin.ts'
import { codeOf, EdgeMeshError } from '#shared/errors.ts'
import type { Lifecycle } from '#shared/lifecycle.ts'
import { pause } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import { type Nat, natLabelsOf } from '#shared/nat.ts'
import { ports } from '#shared/ports.ts'
import { Pump } from '#shared/pump/pump.ts'
import type { ServerMessage } from '#shared/wire.ts'
import { AccessLog } from './access-log.ts'
import type { SidecarConfig } from './config.ts'
import { ControlChannel } from './control/channel.ts'
import { Identity } from './control/identity.ts'
import { ServerContact } from './control/server-contact.ts'
import { parseResolvConf } from './dns/resolv-conf.ts'
import { listenResolver } from './dns/resolver.ts'
import { Express } from './express/express.ts'
import { Interceptor } from './interception/interceptor.ts'
import { Reclaimer } from './interception/reclaimer.ts'
import { FastPath } from './routing/fast-path.ts'
import { NatCheck } from './routing/nat-check.ts'
import { Outbound } from './routing/outbound.ts'
import { PeerMemory } from './routing/peers.ts'
import { type TunnelRoute, tunnelRoutes } from './routing/plan.ts'
import { Puncher } from './routing/punched.ts'
import { RelayClient } from './routing/relayed.ts'
import { Router } from './routing/router.ts'
import { Balancer, keyOf } from './services/balancer.ts'
import { Catalogue } from './services/catalogue.ts'
import { CatalogueStore } from './services/catalogue-store.ts'
import { CatalogueWatch } from './services/catalogue-watch.ts'
import { SidecarMetrics } from './sidecar-metrics.ts'
import { Inbound } from './tunnel/inbound.ts'
import { OfflineGrace } from './tunnel/offline-grace.ts'
import { SessionPool } from './tunnel/pool.ts'
import { SideDialer } from './tunnel/side-dialer.ts'

const natLabels = ['mapping', 'port_preserved', 'proven'] as const

/** The parts of a running sidecar, from the control channel down to the tunnel. */
class Parts {
  readonly config: SidecarConfig
  readonly log: Logger
  readonly metrics = new SidecarMetrics()
  readonly accessLog: AccessLog
  readonly identity: Identity
  readonly grace: OfflineGrace
  readonly store: CatalogueStore
  readonly catalogue: Catalogue
  readonly watch: CatalogueWatch
  readonly balancer = new Balancer()
  readonly reclaimer: Reclaimer
  readonly channel: ControlChannel
  readonly relay: RelayClient
  readonly natCheck: NatCheck
  readonly puncher: Puncher
  readonly memory = new PeerMemory()
  readonly pump: Pump
  readonly pools: Record<TunnelRoute, SessionPool>
  readonly express: Express
  /** Cuts what is open; after the drain, not at the first word of stopping. */
  readonly aborter = new AbortController()
  inbound: Inbound | undefined

  constructor(config: SidecarConfig, identity: Identity, log: Logger) {
    this.config = config
    this.log = log
    this.identity = identity
    this.accessLog = new AccessLog(log, this.metrics)
    const { offlineGraceMs, identityFolder } = config
    const contact = new ServerContact(offlineGraceMs > 0 ? identityFolder : undefined, log)
    this.grace = new OfflineGrace(offlineGraceMs, contact, identity)
    this.store = new CatalogueStore(config.stateFolder, log)
    const kept = this.store.load()
    this.catalogue = kept === undefined ? new Catalogue() : Catalogue.restore(kept)
    this.reclaimer = new Reclaimer(config.ignoredServiceIps, this.catalogue, log)
    this.watch = new CatalogueWatch(
      this.catalogue,
      (message) => this.channel.send(message),
      () => this.channel.reconnect(),
    )
    this.channel = new ControlChannel({
      config,
      identity,
      hello: () => this.watch.hello(),
      onMessage: (message) => this.#onMessage(message),
      onUp: () => {
        contact.up()
        void this.natCheck.renew()
      },
      onLost: (welcomes) => {
        if (!this.channel.up) contact.lost() // else one that we have left
        this.relay.onLost(welcomes)
        this.puncher.onLost()
      },
      onMoved: () => {
        this.pools.relayed.retire()
        this.inbound?.retireRelayed()
        this.express.retireRelayed()
      },
      metrics: this.metrics,
      log,
    })
    const { health } = this.balancer
    this.metrics.gauge('endpoints_ejected', 'Endpoints that are ejected now.', () => health.ejected)
    const graced = 'Sessions with peers whose certificate has expired.'
    this.metrics.gauge('offline_grace_sessions', graced, () => this.grace.sessions)
    this.pump = new Pump(log)
    this.metrics.gauge('pump_connections', 'Connections in the pump.', () => this.pump.use.connections)
    this.metrics.gauge('pump_descriptors', 'File descriptors of the pump.', () => this.pump.use.descriptors)
    this.express = new Express({
      pump: this.pump,
      mode: config.fastPath,
      view: {
        self: selfOf(config),
        byAddress: (address) => this.catalogue.byAddress(address),
        endpointsOf: (id) => this.catalogue.endpointsOf(id),
      },
      declaredPorts: () => this.catalogue.selfPorts,
      trustDomain: config.trustDomain,
      accessLog: this.accessLog,
      used: (id) => this.watch.used(id),
      metrics: this.metrics,
      log,
    })
    this.catalogue.onChange = (id) => this.express.onChange(id)
    this.catalogue.onSelf = () => this.express.onSelf()
    this.metrics.gauge('lanes', 'Lanes to and from peers.', () => this.express.lanes)
    this.metrics.gauge('express_connections', 'Connections on the express path.', () => this.express.open)
    const showIdentity = () => {
      const { key, cert, ca } = identity.tlsOptions()
      this.pump.setIdentity({ key: String(key), chain: String(cert), trustBundle: String(ca) })
    }
    if (identity.certificate !== undefined) showIdentity()
    identity.onChange(showIdentity)
    this.relay = new RelayClient(this.channel, this.metrics, log)
    const { servers, podIPs } = config
    this.natCheck = new NatCheck({ servers, podIPs, signal: this.aborter.signal, log })
    this.puncher = new Puncher({
      channel: this.channel,
      serve: (stream, from) => this.#serve(stream, from),
      mapping: () => this.natCheck.measured?.mapping,
      signal: this.aborter.signal,
      metrics: this.metrics,
      log,
    })
    const pool = (route: TunnelRoute) =>
      new SessionPool(identity, this.grace, this.metrics, log, (podUid, livedMs) => {
        if (route === 'punched') this.memory.ended(podUid, route, livedMs, performance.now())
      })
    this.pools = { direct: pool('direct'), punched: pool('punched'), relayed: pool('relayed') }
    this.metrics.gauges('nat', 'What the server sees of our NAT.', natLabels, () =>
      this.nat === undefined ? [] : [natLabelsOf(this.nat)],
    )
  }

  /** As measured, else as guessed. */
  get nat(): Nat | undefined {
    return this.natCheck.measured ?? this.channel.nat
  }

  #onMessage(message: ServerMessage): void {
    if (message.type === 'ticket' || message.type === 'failed') this.relay.onAnswer(message)
    else if (message.type === 'meet' || message.type === 'unpunched' || message.type === 'rendezvous')
      this.puncher.onMessage(message)
    else if (message.type === 'incoming')
      void this.relay.join(message.ticket, message.from ?? '', (stream, from) => this.#serve(stream, from))
    else if (message.type === 'index' || message.type === 'endpoints' || message.type === 'self') {
      const known = message.type === 'endpoints' ? this.catalogue.endpointsOf(message.service) : undefined
      this.watch.onMessage(message)
      if (message.type === 'endpoints') this.balancer.health.changed(known ?? [], message.endpoints, keyOf)
      if (message.type === 'index') this.reclaimer.update()
      this.store.save(() => this.catalogue.snapshot())
    }
  }

  /** `from` is the peer that the server says has asked for it. */
  #serve(stream: Duplex, from: string): void {
    if (this.inbound === undefined) stream.destroy()
    else this.inbound.accept(stream, from)
  }
}

/**
 * Starts the sidecar; resolves once DNS and the interceptor serve. The tunnel endpoint follows with the first
 * certificate, so a pod starts (and resolves what it knew) while the server is away; it is ready after it.
 */
export async function startSidecar(config: SidecarConfig, lifecycle: Lifecycle, log: Logger): Promise<void> {
  const { podUid, trustDomain, identityFolder } = config
  const identity = await Identity.open({ podUid, trustDomain, folder: identityFolder }, log)
  const parts = new Parts(config, identity, log)
  lifecycle.add('catalogue store', () => parts.store.close())
  lifecycle.add('catalogue watch', () => parts.watch.close())
  lifecycle.add('pump', () => parts.pump.close())
  lifecycle.add('express path', () => parts.express.close())
  lifecycle.add('sessions', () => {
    parts.aborter.abort(new EdgeMeshError('stopping', 'Cannot go on: the sidecar is stopping.'))
    for (const route of tunnelRoutes) parts.pools[route].close()
    parts.inbound?.close()
  })
  const loopbacks = loopbackAddresses()
  await startInterception(parts, loopbacks, lifecycle)
  parts.reclaimer.update()
  lifecycle.add('reclaimer', () => parts.reclaimer.close())
  await startDns(parts, loopbacks, lifecycle)
  await startAdmin(parts, lifecycle)
  startTunnelOnceIdentified(parts)
  parts.channel.start()
  lifecycle.add('control channel', () => parts.channel.close())
  lifecycle.add('connections', () => drain(parts), config.drainMs + 1_000)
  log.info({ pod: `${config.namespace}/${config.podName}`, podIPs: config.podIPs }, 'started')
}

async function startInterception(
  parts: Parts,
  loopbacks: readonly Loopback[],
  lifecycle: Lifecycle,
): Promise<void> {
  const { config, catalogue, watch, accessLog, express, pools, relay, puncher, memory, metrics, log } = parts
  const { signal } = parts.aborter
  const self = selfOf(config)
  const router = new Router({ self, pools, relay, puncher, memory, signal, metrics, log })
  const outbound = new Outbound({
    self,
    catalogue,
    watch,
    balancer: parts.balancer,
    metrics,
    fastPath: new FastPath(
      parts.pump,
      new SideDialer(parts.pump, config.trustDomain, metrics, log),
      config.fastPath,
      () => accessLog.openConnections,
    ),
    router,
    accessLog,
    follow: (socket, destination) => express.follow(socket, destination),
    onRouted: (destination, routed) => express.learn(destination, routed),
    onLost: (destination) => express.lost(destination),
    signal,
  })
  const interceptor = new Interceptor({
    addresses: loopbacks,
    port: ports.interceptor,
    onConnection: (socket, destination, detour) => void outbound.carry(socket, destination, detour),
    log,
  })
  await interceptor.listen()
  express.attach(interceptor)
  lifecycle.add('interceptor', async () => {
    await express.unlisten()
    interceptor.close()
  })
}

function selfOf({ podUid, podIPs, node, zone }: SidecarConfig) {
  return { podUid, podIPs, node, zone }
}

async function startDns(parts: Parts, loopbacks: readonly Loopback[], lifecycle: Lifecycle): Promise<void> {
  const { config, catalogue, watch, metrics, log } = parts
  const { servers: own } = parseResolvConf(readResolvConf(config.resolvConf))
  const servers = config.upstreamDns.length > 0 ? config.upstreamDns : own
  const resolver = await listenResolver({
    addresses: loopbacks,
    port: ports.dns,
    settings: { namespace: config.namespace, clusterDomain: config.clusterDomain, servers },
    view: {
      get loaded() {
        return catalogue.loaded
      },
      get version() {
        return catalogue.version
      },
      byName: (namespace, name) => catalogue.byName(namespace, name),
      byAddress: (address) => catalogue.byAddress(address),
      endpoints: (id, signal) => watch.endpoints(id, signal),
      used: (id) => watch.used(id),
    },
    log,
    metrics,
  })
  lifecycle.add('resolver', () => resolver.close())
}

async function startAdmin(parts: Parts, lifecycle: Lifecycle): Promise<void> {
  const { identity, catalogue, channel, pools, watch, accessLog, config } = parts
  const status = () => ({
    server: { up: channel.up, address: channel.server },
    nat: parts.nat,
    certificate: { notAfter: identity.certificate && new Date(identity.certificate.notAfter).toISOString() },
    catalogue: { loaded: catalogue.loaded, version: catalogue.version, subscriptions: watch.subscriptions },
    sessions: {
      direct: pools.direct.size,
      punched: pools.punched.size,
      relayed: pools.relayed.size,
      inboundStreams: parts.inbound?.streams ?? 0,
    },
    connections: accessLog.openConnections,
    rssBytes: process.memoryUsage.rss(),
  })
  const { server } = await listenAdmin({
    port: config.adminPort,
    metrics: parts.metrics,
    missing: () => (parts.inbound === undefined ? ['identity'] : []),
    pages: { '/status': status },
    actions: { '/drain': () => drainInbound(parts), '/quit': () => process.kill(process.pid, 'SIGTERM') },
  })
  lifecycle.add('admin', () => void server.close())
}

function startTunnelOnceIdentified(parts: Parts): void {
  const { identity, accessLog, metrics, log, config, catalogue } = parts
  const listenOnce = async () => {
    if (parts.inbound !== undefined) return
    const self = () => ({ podIPs: config.podIPs, declaredPorts: catalogue.selfPorts })
    const { pump, grace, express } = parts
    const inbound = new Inbound({
      port: ports.tunnel,
      identity,
      grace,
      self,
      accessLog,
      pump,
      onLane: (socket, route, proven) => express.takeLane(socket, route, proven),
      metrics,
      log,
    })
    parts.inbound = inbound
    await inbound.listen()
    log.info('ready: the tunnel endpoint serves')
  }
  if (identity.certificate !== undefined) void listenOnce()
  identity.onChange(() => void listenOnce())
}

/** Inbound ends first, while the app's own connections may go on until they are done or the time is up. */
async function drain(parts: Parts): Promise<void> {
  const { channel, accessLog, config, log } = parts
  channel.send({ type: 'bye' })
  drainInbound(parts)
  const until = performance.now() + config.drainMs
  while (accessLog.openConnections > 0 && performance.now() < until) await pause(100)
  if (accessLog.openConnections > 0)
    log.warn({ open: accessLog.openConnections }, 'connections outlived the drain')
}

/** Peers open nothing new here; what is open may finish. */
function drainInbound({ inbound, express }: Parts): void {
  inbound?.drain()
  express.drain()
}

type Loopback = '127.0.0.1' | '::1'

/** The pod's loopback addresses; IPv6 may be switched off in its namespace. */
function loopbackAddresses(): readonly Loopback[] {
  const lo = Object.values(networkInterfaces()).flat()
  return lo.some((i) => i?.address === '::1') ? ['127.0.0.1', '::1'] : ['127.0.0.1']
}

function readResolvConf(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    throw new EdgeMeshError(
      'bad-config',
      `Cannot read ${path}: ${codeOf(error)}. Set EDGEMESH_RESOLV_CONF.`,
      error,
    )
  }
}
