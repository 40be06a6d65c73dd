import type { Duplex } from 'node:stream'
import type { Endpoint } from '#shared/catalogue.ts'
import { dial } from '#shared/dial.ts'
import { codeOf, EdgeMeshError, type ErrorCode, sentenceOf } from '#shared/errors.ts'
import { pause, withDeadline } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import { ports } from '#shared/ports.ts'
import type { SidecarMetrics } from '../sidecar-metrics.ts'
import type { SessionPool } from '../tunnel/pool.ts'
import type { BulkStream } from '../tunnel/side-dialer.ts'
import type { PeerMemory } from './peers.ts'
import { plan, type RouteKind, type Step, type TunnelRoute, tunnelRoutes } from './plan.ts'
import { PeerIsNear } from './relayed.ts'

/** How long a TCP connect to an endpoint or its sidecar may take, in ms. */
const dialDeadlineMs = 4_000
/** What a first connection waits at most for a punched one where the relay is the last resort: in one LAN that is half a second. */
const nearDeadlineMs = 1_500
/** Background steps at once. */
const maxBehind = 256

/** Codes that stay what they are when every route fails with them. */
const telling: ErrorCode[] = ['timeout', 'limit', 'unauthenticated']

export interface Target {
  endpoint: Pick<Endpoint, 'podUid' | 'sidecar' | 'addresses'>
  /** Address and port of the app, as the far pod knows them. */
  address: string
  port: number
}

export interface Relay {
  readonly available: boolean
  /** A byte stream to the peer through the server; `PeerIsNear`, where that is asked for, and the like as errors. */
  dial(podUid: string, unlessNear?: boolean): Promise<Duplex>
}

export interface Connected {
  stream: Duplex
  route: RouteKind
  /** How to move the stream to a side connection, where it is one of a session. */
  bulk?: BulkStream
}

export interface RouterOptions {
  self: { podUid: string; podIPs: readonly string[] }
  pools: Record<TunnelRoute, SessionPool>
  relay: Relay
  puncher: { dial(podUid: string, attempt: number): Promise<Duplex> }
  memory: PeerMemory
  /** Ends every dial when the sidecar stops. */
  signal: AbortSignal
  metrics: SidecarMetrics
  log: Logger
  /** Port of the peers' tunnel endpoints. */
  tunnelPort?: number
}

/** A stream that was to go on a punched session which has just ended: it starts over on what there is. */
const noSession = () =>
  Promise.reject(new EdgeMeshError('reset', 'Cannot open the stream: the session to the peer ended.'))

/** Acts on the plan: races the routes to an endpoint and opens one stream on the one that is there first. */
export class Router {
  readonly #options: RouterOptions
  /** Background steps under way, by route and peer. */
  readonly #behind = new Set<string>()
  /** Near peers that the relay is asked for all the same. */
  readonly #insisting = new Set<string>()

  constructor(options: RouterOptions) {
    this.#options = options
  }

  /**
   * A byte stream to the endpoint's app, with the route that it took. Rejects with the code of what the app
   * should be shown (`refused`, `timeout`, `unreachable`, `forbidden`...).
   */
  async connect(target: Target, signal: AbortSignal): Promise<Connected> {
    for (let broken = 0; ; broken++) {
      try {
        return await this.#connectOnce(target, signal)
      } catch (error) {
        // Pooled sessions may be found dead only now, one after another where a NAT of the peer's has forgotten all of
        // them; nothing was sent on the stream.
        if (codeOf(error) !== 'reset' || broken >= tunnelRoutes.length || signal.aborted) throw error
      }
    }
  }

  /**
   * Makes sure of a session to the endpoint, by whichever route has one first, so that `connect` finds it; its app
   * learns nothing. Undefined when there is one, or none is needed.
   */
  reach(target: Target): Promise<unknown> | undefined {
    const { self, pools } = this.#options
    const { podUid = '' } = target.endpoint
    if (tunnelRoutes.some((route) => pools[route].has(podUid))) return undefined
    const steps = plan(target.endpoint, self, this.#knowledgeOf(podUid), performance.now())
    const [first] = steps
    if (first === undefined || first.route === 'local' || first.route === 'plain') return undefined
    return this.#race(
      target,
      podUid,
      steps.filter((s) => !s.background),
    )
  }

  async #connectOnce(target: Target, signal: AbortSignal): Promise<Connected> {
    const { self } = this.#options
    const podUid = target.endpoint.podUid ?? ''
    const steps = plan(target.endpoint, self, this.#knowledgeOf(podUid), performance.now())
    const first = steps[0]?.route
    if (first === 'local' || first === 'plain') {
      const { address: host, port } = target
      const stream = await dial({ host, port, deadlineMs: dialDeadlineMs, signal, allowHalfOpen: true })
      return { stream, route: first }
    }
    for (const step of steps.filter((s) => s.background)) void this.#tryBehind(step, target, podUid)
    const raced = steps.filter((s) => !s.background)
    const route = await this.#race(target, podUid, raced)
    const pool = this.#options.pools[route]
    const dialPeer = () => this.#dial(route, target, podUid)
    const stream = await pool.open({ ...target, podUid }, route === 'punched' ? noSession : dialPeer, signal)
    return { stream, route, bulk: { podUid, stream, dial: dialPeer } }
  }

  #knowledgeOf(podUid: string) {
    const { pools, relay, memory } = this.#options
    // Punching takes seconds: a full session there serves no one at once. The others get one more in a moment.
    const serves = (route: TunnelRoute) =>
      route === 'punched' ? pools[route].hasRoom(podUid) : pools[route].has(podUid)
    const sessions = new Set<RouteKind>(tunnelRoutes.filter(serves))
    return { sessions, blockedUntil: memory.blockedUntil(podUid), relayAvailable: relay.available }
  }

  /** For the streams to come: what is better than what serves this one. Never rejects; failures are remembered. */
  async #tryBehind({ route, afterMs }: Step, target: Target, podUid: string): Promise<void> {
    const { pools, signal } = this.#options
    const key = `${route} ${podUid}`
    if (this.#behind.has(key) || this.#behind.size >= maxBehind) return
    this.#behind.add(key)
    try {
      await pause(afterMs, signal)
      if (!signal.aborted && !pools.direct.has(podUid))
        await this.#prepare(route as TunnelRoute, target, podUid)
    } catch {
      // counted, logged and remembered where it failed
    } finally {
      this.#behind.delete(key)
    }
  }

  /** The first route that has a session, perhaps one that is there already. Slower ones go on and leave theirs to the pool for later streams. */
  async #race(target: Target, podUid: string, steps: Step[]): Promise<TunnelRoute> {
    const first = steps[0]?.route as TunnelRoute | undefined
    if (first !== undefined && this.#options.pools[first].has(podUid)) return first
    const failures: unknown[] = []
    const decided = new AbortController()
    let precedingFailed: Promise<unknown> = Promise.resolve()
    const attempts = steps.map(({ route, afterMs }, i) => {
      const mayStart =
        i === 0 ? Promise.resolve() : Promise.race([pause(afterMs, decided.signal), precedingFailed])
      const attempt = mayStart.then(() => {
        if (decided.signal.aborted)
          throw new EdgeMeshError('stopping', 'Cannot go on: another route was faster.')
        return this.#prepare(route as TunnelRoute, target, podUid)
      })
      precedingFailed = new Promise((resolve) => attempt.catch(resolve))
      return attempt.catch((error) => {
        failures.push(error)
        throw error
      })
    })
    try {
      return await Promise.any(attempts)
    } catch {
      throw this.#noRoute(podUid, failures)
    } finally {
      decided.abort()
    }
  }

  /** The route that has a session then: where the peer turns out to be near, that may be another one. */
  async #prepare(
    route: TunnelRoute,
    target: Target,
    podUid: string,
    unlessNear = route === 'relayed' && this.#mayPunch(podUid),
  ): Promise<TunnelRoute> {
    const { pools, memory, metrics, log } = this.#options
    try {
      if (!(route === 'punched' ? pools[route].hasRoom(podUid) : pools[route].has(podUid)))
        await pools[route].prepare(podUid, () => this.#dial(route, target, podUid, unlessNear))
      memory.succeeded(podUid, route)
      return route
    } catch (error) {
      if (error instanceof PeerIsNear) return this.#prepareNear(target, podUid)
      if (route !== 'relayed') memory.failed(podUid, route, performance.now())
      metrics.routeFailures.inc({ route, reason: codeOf(error) })
      log.debug({ podUid, route, error: sentenceOf(error) }, 'a route failed')
      throw error
    }
  }

  /** Both come from one public address, so they are in one network, most likely: the cloud is the last resort. */
  async #prepareNear(target: Target, podUid: string): Promise<TunnelRoute> {
    try {
      return await withDeadline(
        this.#prepare('punched', target, podUid),
        nearDeadlineMs,
        `punch to pod ${podUid}, which is near,`,
      )
    } catch {
      this.#insisting.add(podUid)
      return this.#prepare('relayed', target, podUid, false).finally(() => this.#insisting.delete(podUid))
    }
  }

  /** Not while earlier attempts are remembered to have failed, or somebody has waited for one in vain: dials are shared. */
  #mayPunch(podUid: string): boolean {
    const now = performance.now()
    if (this.#insisting.has(podUid)) return false
    return (this.#options.memory.blockedUntil(podUid).punched ?? now) <= now
  }

  async #dial(route: TunnelRoute, target: Target, podUid: string, unlessNear = false): Promise<Duplex> {
    const { relay, puncher, memory, self, signal, tunnelPort = ports.tunnel } = this.#options
    if (route === 'relayed') return relay.dial(podUid, unlessNear)
    if (route === 'punched') return puncher.dial(podUid, memory.failures(podUid, 'punched'))
    // The family that the app asked for first, then the pod's other address; never an address of our own.
    const candidates = [target.address, ...target.endpoint.addresses.filter((a) => a !== target.address)]
    let last: unknown
    for (const host of candidates.filter((a) => !self.podIPs.includes(a))) {
      try {
        return await dial({
          host,
          port: tunnelPort,
          deadlineMs: dialDeadlineMs,
          signal,
          allowHalfOpen: false,
        })
      } catch (error) {
        last = error
      }
    }
    throw (
      last ?? new EdgeMeshError('unreachable', `Cannot reach pod ${podUid} directly: its address is our own.`)
    )
  }

  #noRoute(podUid: string, failures: unknown[]): EdgeMeshError {
    const told = failures.map((f) => sentenceOf(f)).join(' ')
    const code = telling.find((c) => failures.every((f) => codeOf(f) === c)) ?? 'unreachable'
    return new EdgeMeshError(
      code,
      `Cannot reach pod ${podUid} by any route: ${told || 'none is possible now.'}`,
    )
  }
}
