import type { Endpoint, ServiceEntry } from '#shared/catalogue.ts'

/** What the server knows of a pod, by its uid. */
export interface PodRecord {
  uid: string
  namespace: string
  name: string
  serviceAccount: string
  node?: string
  ips: string[]
  /** Of its node. */
  hostIPs: string[]
  /** TCP containerPorts. */
  containerPorts: number[]
  /** Whether the pod was injected (annotation sidecar.edgemesh.io/status: injected). */
  sidecar: boolean
  /** What the pod, or its namespace, asks for by annotation. */
  leafLifetimeMs?: number
  /** Phase Succeeded or Failed: it will not come back under this uid. */
  finished: boolean
}

/** One consistent state of all that a source knows. Unchanged parts keep their identity between states. */
export interface CatalogueState {
  services: ReadonlyMap<string, ServiceEntry>
  endpoints: ReadonlyMap<string, readonly Endpoint[]>
  /** By pod uid. */
  pods: ReadonlyMap<string, PodRecord>
}

export const emptyState: CatalogueState = { services: new Map(), endpoints: new Map(), pods: new Map() }

/** Where services, endpoints and pods come from: a folder of manifests, or the Kubernetes API. */
export interface CatalogueSource {
  readonly state: CatalogueState
  /** Called after each real change; returns how to stop listening. */
  onChange(listener: (next: CatalogueState, previous: CatalogueState) => void): () => void
  close(): Promise<void>
}

/** Made once for each state: looking through all endpoints for each pod would be quadratic. */
const portsByPod = new WeakMap<CatalogueState, Map<string, Set<number>>>()

/** Every port that a pod may be dialled at: its containerPorts, and those that services target on it. Sorted. */
export function declaredPorts(state: CatalogueState, uid: string): number[] {
  let index = portsByPod.get(state)
  if (index === undefined) {
    index = indexPorts(state)
    portsByPod.set(state, index)
  }
  return [...new Set([...(state.pods.get(uid)?.containerPorts ?? []), ...(index.get(uid) ?? [])])].sort(
    (a, b) => a - b,
  )
}

function indexPorts(state: CatalogueState): Map<string, Set<number>> {
  const index = new Map<string, Set<number>>()
  for (const { podUid, ports } of [...state.endpoints.values()].flat()) {
    if (podUid === undefined) continue
    const known = index.get(podUid) ?? new Set<number>()
    for (const port of Object.values(ports)) known.add(port)
    index.set(podUid, known)
  }
  return index
}
