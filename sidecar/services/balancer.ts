import { isIP } from 'node:net'
import { type Endpoint, idOf, type ServiceEntry } from '#shared/catalogue.ts'
import { available, EndpointHealth, healthKey } from './health.ts'

/** Sticky (service, client) pairs remembered; the least recently used go first. */
const maxAffinities = 10_000
/** Services with a turn or counts; as many as can be subscribed, and some. */
const maxServices = 2_000

export interface Wanted {
  service: ServiceEntry
  portName: string
  endpoints: readonly Endpoint[]
  /** Source IP of the client, without its port: the port would spread one client (EdgeMesh #587). */
  client: string
  /** The address that the client dialled: its family is preferred. */
  address: string
  self: { node: string | undefined; zone: string | undefined }
  /** Key of the endpoint whose turn it is, where turns were taken elsewhere. */
  turn?: string | undefined
  /** Keys that have failed for this connection. */
  exclude: ReadonlySet<string>
}

export interface Choice {
  endpoint: Endpoint
  address: string
  port: number
  key: string
  /** Of the endpoint and its port, for EndpointHealth. */
  healthKey: string
  /** Chosen although it failed lately: there is no better one. */
  ejected: boolean
}

/** The endpoints that may serve, as kube-proxy has it: those near by, where there are any. */
export function eligible(
  service: Pick<ServiceEntry, 'localOnly'>,
  endpoints: readonly Endpoint[],
  self: Wanted['self'],
): Endpoint[] {
  const { near, all } = tiers(service, endpoints, self)
  return near.length > 0 ? near : all
}

/**
 * `all`: the ready ones, else those that still serve while they terminate; on this node only for a Local policy.
 * `near`: of those the ones for this zone, where every endpoint has hints.
 */
function tiers(
  service: Pick<ServiceEntry, 'localOnly'>,
  endpoints: readonly Endpoint[],
  self: Wanted['self'],
): { near: Endpoint[]; all: Endpoint[] } {
  const reachable = service.localOnly
    ? endpoints.filter((e) => e.node !== undefined && e.node === self.node)
    : endpoints
  const ready = reachable.filter((e) => e.ready)
  const all = ready.length > 0 ? ready : reachable.filter((e) => e.serving && e.terminating)
  if (service.localOnly || self.zone === undefined) return { near: [], all }
  const hinted = all.every((e) => e.forZones !== undefined && e.forZones.length > 0)
  return { near: hinted ? all.filter((e) => e.forZones?.includes(self.zone ?? '')) : [], all }
}

export function keyOf(endpoint: Endpoint): string {
  return endpoint.podUid ?? endpoint.addresses[0] ?? ''
}

interface ServiceState {
  /** Key that had the last turn. */
  last: string | undefined
  /** Open connections by key. */
  open: Map<string, number>
}

/** Chooses an endpoint for each connection. Nothing waits here; time comes from `now` (ms). */
export class Balancer {
  readonly #now: () => number
  readonly #services = new Map<string, ServiceState>()
  readonly #affinities = new Map<string, { key: string; until: number }>()

  readonly health: EndpointHealth

  constructor(now: () => number = () => performance.now(), health = new EndpointHealth(now)) {
    this.#now = now
    this.health = health
  }

  /** Undefined when no endpoint may serve. */
  pick(wanted: Wanted): Choice | undefined {
    const { portName } = wanted
    const now = this.#now()
    const healthKeyOf = (e: Endpoint) => healthKey(keyOf(e), e.ports[portName] ?? 0)
    const restsUntil = (e: Endpoint) => this.health.restsUntil(healthKeyOf(e))
    const candidates = available(
      this.#candidates(wanted, (e) => restsUntil(e) <= now),
      restsUntil,
      now,
    ).sort((a, b) => (keyOf(a) < keyOf(b) ? -1 : 1))
    if (candidates.length === 0) return undefined
    const sticky = this.#sticky(wanted, candidates)
    const endpoint = sticky ?? this.#next(wanted, candidates)
    if (endpoint === undefined) return undefined
    this.stick(wanted, keyOf(endpoint))
    const family = isIP(wanted.address)
    const address = endpoint.addresses.find((a) => isIP(a) === family) ?? endpoint.addresses[0] ?? ''
    return {
      endpoint,
      address,
      port: endpoint.ports[portName] ?? 0,
      key: keyOf(endpoint),
      healthKey: healthKeyOf(endpoint),
      ejected: restsUntil(endpoint) > now,
    }
  }

  /** Those near by as long as one of them is up, else all: a hint is a wish, but the app wants an answer. */
  #candidates(wanted: Wanted, isUp: (endpoint: Endpoint) => boolean): Endpoint[] {
    const { service, portName, endpoints, self, exclude } = wanted
    const serves = (e: Endpoint) => !exclude.has(keyOf(e)) && e.ports[portName] !== undefined
    const { near, all } = tiers(service, endpoints, self)
    const inReach = near.filter(serves)
    return inReach.some(isUp) ? inReach : all.filter(serves)
  }

  opened(service: string, key: string): void {
    const { open } = this.#stateOf(service)
    open.set(key, (open.get(key) ?? 0) + 1)
  }

  closed(service: string, key: string): void {
    const open = this.#services.get(service)?.open
    const left = (open?.get(key) ?? 0) - 1
    if (left > 0) open?.set(key, left)
    else open?.delete(key)
  }

  #stateOf(service: string): ServiceState {
    const state = this.#services.get(service) ?? { last: undefined, open: new Map() }
    this.#services.delete(service)
    this.#services.set(service, state)
    if (this.#services.size > maxServices) this.#services.delete(this.#services.keys().next().value ?? '')
    return state
  }

  /**
   * Round robin goes by key, not by position: endpoints that come and go do not make it skip or repeat others.
   * Least request takes the fewest open connections; equals take turns.
   */
  #next({ service, turn }: Wanted, candidates: Endpoint[]): Endpoint | undefined {
    const state = this.#stateOf(idOf(service))
    const openOf = (e: Endpoint) => state.open.get(keyOf(e)) ?? 0
    const fewest = Math.min(...candidates.map(openOf))
    const inTurn =
      service.balancer === 'least-request' ? candidates.filter((e) => openOf(e) === fewest) : candidates
    const { last = '' } = state
    const next = inTurn.find((e) => keyOf(e) === turn) ?? inTurn.find((e) => keyOf(e) > last) ?? inTurn[0]
    if (next !== undefined) state.last = keyOf(next)
    return next
  }

  #affinityOf({ service, client }: Pick<Wanted, 'service' | 'client'>): string {
    return `${idOf(service)} ${client}`
  }

  #sticky(wanted: Wanted, candidates: Endpoint[]): Endpoint | undefined {
    if (wanted.service.affinitySeconds === 0) return undefined
    const affinity = this.#affinities.get(this.#affinityOf(wanted))
    if (affinity === undefined || affinity.until <= this.#now()) return undefined
    return candidates.find((e) => keyOf(e) === affinity.key)
  }

  /** The client stays with this endpoint from now on, where the service has affinity. */
  stick(wanted: Pick<Wanted, 'service' | 'client'>, key: string): void {
    const { affinitySeconds } = wanted.service
    if (affinitySeconds === 0) return
    const name = this.#affinityOf(wanted)
    this.#affinities.delete(name)
    this.#affinities.set(name, { key, until: this.#now() + affinitySeconds * 1_000 })
    if (this.#affinities.size > maxAffinities)
      this.#affinities.delete(this.#affinities.keys().next().value ?? '')
  }
}
