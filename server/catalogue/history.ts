import { randomUUID } from 'node:crypto'
import type { ServiceEntry } from '#shared/catalogue.ts'
import type { ServerMessage } from '#shared/wire.ts'
import type { CatalogueState } from './source.ts'

/** Versions back to which a sidecar can be brought up by deltas; older ones get the whole index. */
const maxDeltas = 1_000

export type IndexMessage = Extract<ServerMessage, { type: 'index' }>

/** What changed in the index between two states. Unchanged entries keep their identity, so this is cheap. */
export function diffIndex(
  previous: CatalogueState['services'],
  next: CatalogueState['services'],
): { upserts: ServiceEntry[]; removes: string[] } {
  return {
    upserts: [...next].filter(([id, service]) => previous.get(id) !== service).map(([, service]) => service),
    removes: [...previous.keys()].filter((id) => !next.has(id)),
  }
}

/** Services whose endpoints changed, came or went. */
export function changedEndpoints(
  previous: CatalogueState['endpoints'],
  next: CatalogueState['endpoints'],
): string[] {
  const ids = new Set([...previous.keys(), ...next.keys()])
  return [...ids].filter((id) => previous.get(id) !== next.get(id))
}

/** Pods that changed or came, and those that these services have or had as endpoints: their declared ports may be others. */
export function changedPods(
  services: Iterable<string>,
  previous: Omit<CatalogueState, 'services'>,
  next: Omit<CatalogueState, 'services'>,
): Set<string> {
  const uids = new Set<string>()
  for (const id of services)
    for (const { endpoints } of [previous, next])
      for (const { podUid } of endpoints.get(id) ?? []) if (podUid !== undefined) uids.add(podUid)
  if (next.pods === previous.pods) return uids
  for (const [uid, pod] of next.pods) if (previous.pods.get(uid) !== pod) uids.add(uid)
  return uids
}

/** The index and its latest changes, so that a sidecar that was away gets just what it missed. */
export class IndexHistory {
  /** Another process counts its versions otherwise. */
  readonly epoch = randomUUID()
  #version = 1
  #services: CatalogueState['services']
  readonly #deltas: IndexMessage[] = []

  constructor(services: CatalogueState['services']) {
    this.#services = services
  }

  get version(): number {
    return this.#version
  }

  /** The delta to the next state; undefined when the index is the same. */
  advance(next: CatalogueState['services']): IndexMessage | undefined {
    const { upserts, removes } = diffIndex(this.#services, next)
    this.#services = next
    if (upserts.length + removes.length === 0) return undefined
    this.#version++
    const { epoch } = this
    const delta: IndexMessage = {
      type: 'index',
      epoch,
      version: this.#version,
      full: false,
      upserts,
      removes,
    }
    this.#deltas.push(delta)
    if (this.#deltas.length > maxDeltas) this.#deltas.shift()
    return delta
  }

  /** What brings a sidecar from `known` to now: one delta, empty where nothing was missed, or the whole index. */
  since(known: { epoch: string; version: number } | undefined): IndexMessage {
    const missed = this.#version - (known?.version ?? 0)
    if (known?.epoch !== this.epoch || missed < 0 || missed > this.#deltas.length) return this.#whole()
    const changed = new Map<string, ServiceEntry | undefined>()
    for (const delta of missed === 0 ? [] : this.#deltas.slice(-missed)) {
      for (const id of delta.removes) changed.set(id, undefined)
      for (const service of delta.upserts) changed.set(`${service.namespace}/${service.name}`, service)
    }
    return {
      type: 'index',
      epoch: this.epoch,
      version: this.#version,
      full: false,
      upserts: [...changed.values()].filter((s) => s !== undefined),
      removes: [...changed].filter(([, s]) => s === undefined).map(([id]) => id),
    }
  }

  #whole(): IndexMessage {
    const upserts = [...this.#services.values()]
    return { type: 'index', epoch: this.epoch, version: this.#version, full: true, upserts, removes: [] }
  }
}
