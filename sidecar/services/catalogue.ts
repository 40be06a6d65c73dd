import { type Endpoint, endpoint, idOf, type ServiceEntry, serviceEntry } from '#shared/catalogue.ts'
import { dictionary, integer, list, type Of, object, text } from '#shared/shape.ts'
import type { ServerMessage } from '#shared/wire.ts'

/** What is kept on disk between restarts. */
export const snapshotShape = object({
  v: integer(1, 1),
  epoch: text(64),
  version: integer(0, Number.MAX_SAFE_INTEGER),
  services: list(serviceEntry, 100_000),
  endpoints: dictionary(list(endpoint, 20_000), 1_000),
  selfPorts: list(integer(1, 65_535), 10_000),
})
export type Snapshot = Of<typeof snapshotShape>

type IndexMessage = Extract<ServerMessage, { type: 'index' }>

/** The services that this pod may see, and the endpoints of those that it uses. Look-ups are O(1). */
export class Catalogue {
  readonly #services = new Map<string, ServiceEntry>()
  readonly #byAddress = new Map<string, ServiceEntry>()
  readonly #endpoints = new Map<string, readonly Endpoint[]>()
  #selfPorts: readonly number[] = []
  #epoch: string | undefined
  #indexVersion = 0
  #version = 0
  /** Told of each change: of the endpoints of one service, or of anything (undefined). */
  onChange: (id: string | undefined) => void = () => undefined
  /** The ports that this pod declares have changed. */
  onSelf: () => void = () => undefined

  static restore(snapshot: Snapshot): Catalogue {
    const catalogue = new Catalogue()
    const { epoch, version, services } = snapshot
    catalogue.applyIndex({ type: 'index', epoch, version, full: true, upserts: services, removes: [] })
    for (const [id, endpoints] of Object.entries(snapshot.endpoints)) catalogue.applyEndpoints(id, endpoints)
    catalogue.applySelf(snapshot.selfPorts)
    return catalogue
  }

  snapshot(): Snapshot {
    return {
      v: 1,
      epoch: this.#epoch ?? '',
      version: this.#indexVersion,
      services: [...this.#services.values()],
      endpoints: Object.fromEntries([...this.#endpoints].map(([id, list]) => [id, [...list]])),
      selfPorts: [...this.#selfPorts],
    }
  }

  /** Whether an index was ever there: before, a name that we do not know may well exist. */
  get loaded(): boolean {
    return this.#epoch !== undefined
  }

  /** Grows with each change of services; for caches of what was derived from them. */
  get version(): number {
    return this.#version
  }

  /** Where the server may go on from. */
  get resume(): { epoch: string; version: number } | undefined {
    return this.#epoch === undefined ? undefined : { epoch: this.#epoch, version: this.#indexVersion }
  }

  get selfPorts(): readonly number[] {
    return this.#selfPorts
  }

  byName(namespace: string, name: string): ServiceEntry | undefined {
    return this.#services.get(`${namespace}/${name}`)
  }

  byAddress(address: string): ServiceEntry | undefined {
    return this.#byAddress.get(address)
  }

  /** Undefined when never told; an empty list is knowledge. */
  endpointsOf(id: string): readonly Endpoint[] | undefined {
    return this.#endpoints.get(id)
  }

  /** Ids of the services whose endpoints are known. */
  knownEndpoints(): Iterable<string> {
    return this.#endpoints.keys()
  }

  /** A delta that does not follow on what we have changes nothing and says `resync`. */
  applyIndex(message: IndexMessage): 'applied' | 'resync' {
    const follows = message.epoch === this.#epoch && message.version > this.#indexVersion
    if (!message.full && !follows) {
      const known = message.epoch === this.#epoch && message.version === this.#indexVersion
      return known ? 'applied' : 'resync'
    }
    if (message.full) this.#replaceAll(message.upserts)
    else {
      // First what goes, then what comes: a clusterIP may move from one service to another in one delta.
      for (const id of message.removes) this.#remove(id)
      for (const service of message.upserts) this.#remove(idOf(service), true)
      for (const service of message.upserts) this.#add(service)
    }
    this.#epoch = message.epoch
    this.#indexVersion = message.version
    this.#version++
    this.onChange(undefined)
    return 'applied'
  }

  applyEndpoints(id: string, endpoints: readonly Endpoint[]): void {
    this.#endpoints.set(id, endpoints)
    this.onChange(id)
  }

  applySelf(ports: readonly number[]): void {
    this.#selfPorts = ports
    this.onSelf()
  }

  /** The endpoints of a service are not followed any more. */
  forget(id: string): void {
    this.#endpoints.delete(id)
    this.onChange(id)
  }

  #replaceAll(services: readonly ServiceEntry[]): void {
    this.#services.clear()
    this.#byAddress.clear()
    for (const service of services) this.#add(service)
    for (const id of this.#endpoints.keys()) if (!this.#services.has(id)) this.#endpoints.delete(id)
  }

  #add(service: ServiceEntry): void {
    this.#services.set(idOf(service), service)
    for (const address of service.clusterIPs) this.#byAddress.set(address, service)
  }

  #remove(id: string, keepEndpoints = false): void {
    const service = this.#services.get(id)
    for (const address of service?.clusterIPs ?? []) {
      if (this.#byAddress.get(address) === service) this.#byAddress.delete(address)
    }
    this.#services.delete(id)
    if (!keepEndpoints) this.#endpoints.delete(id)
  }
}
