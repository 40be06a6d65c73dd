import { isIP } from 'node:net'
import { isDeepStrictEqual } from 'node:util'
import {
  type Endpoint,
  endpoint as endpointShape,
  idOf,
  type ServiceEntry,
  serviceEntry,
} from '#shared/catalogue.ts'
import { sentenceOf } from '#shared/errors.ts'
import { leafLifetimeAnnotation, leafLifetimeRule, parseLeafLifetime } from '#shared/lifetimes.ts'
import { once } from './once.ts'
import type { CatalogueState, PodRecord } from './source.ts'

/** A Kubernetes object as parsed, with where it was found. Nothing about its fields is believed yet. */
export interface Manifest {
  object: unknown
  origin: string
}

export interface Compiled {
  state: CatalogueState
  /** One sentence for each object that was left out or read with a default. */
  diagnostics: string[]
}

/** The fields of the Kubernetes API that we read; all optional, since manifests are written by hand. */
interface KubernetesObject {
  kind?: string
  metadata?: {
    name?: string
    namespace?: string
    uid?: string
    labels?: Record<string, string>
    annotations?: Record<string, string>
  }
  spec?: Record<string, unknown>
  status?: Record<string, unknown>
}

interface SliceEndpoint {
  addresses?: string[]
  conditions?: { ready?: boolean; serving?: boolean; terminating?: boolean }
  hostname?: string
  nodeName?: string
  zone?: string
  hints?: { forZones?: { name?: string }[] }
  targetRef?: { kind?: string; name?: string; uid?: string }
}

interface Slice extends KubernetesObject {
  addressType?: string
  endpoints?: SliceEndpoint[]
  ports?: { name?: string; port?: number; protocol?: string }[]
}

interface ContainerSpec {
  restartPolicy?: string
  ports?: { containerPort?: number; protocol?: string }[]
}

export const statusAnnotation = 'sidecar.edgemesh.io/status'
export const balancerAnnotation = 'sidecar.edgemesh.io/balancer'
const serviceNameLabel = 'kubernetes.io/service-name'

/**
 * Kubernetes objects to a catalogue. Never throws: an object that cannot be used is left out, with a diagnostic. Objects must
 * not be changed afterwards.
 */
export function compile(manifests: readonly Manifest[], previous?: CatalogueState): Compiled {
  const diagnostics: string[] = []
  const services = new Map<string, ServiceEntry>()
  const pods = new Map<string, PodRecord>()
  const namespaces = compileNamespaces(manifests, diagnostics)
  const slices: { id: string; slice: Slice; origin: string }[] = []
  for (const { object, origin } of manifests) {
    const leaveOut = (error: unknown) => diagnostics.push(`${origin}: left out: ${sentenceOf(error)}`)
    const warn = (sentence: string) => diagnostics.push(`${origin}: ${sentence}`)
    const o = object as Slice
    try {
      if (o.kind === 'Service') {
        const entry = once(o, [], warn, (tell) => compileService(o, tell))
        services.set(idOf(entry), entry)
      } else if (o.kind === 'Pod') {
        const lifetimeMs = namespaces.get(o.metadata?.namespace ?? 'default')
        const pod = once(o, [lifetimeMs], warn, (tell) => compilePod(o, lifetimeMs, tell))
        pods.set(pod.uid, pod)
      } else if (o.kind === 'EndpointSlice') {
        const name = o.metadata?.labels?.[serviceNameLabel]
        if (name === undefined) leaveOut(`the EndpointSlice has no label ${serviceNameLabel}`)
        else slices.push({ id: `${o.metadata?.namespace ?? 'default'}/${name}`, slice: o, origin })
      }
    } catch (error) {
      leaveOut(error)
    }
  }
  const endpoints = compileEndpoints(slices, pods, diagnostics)
  const next = { services, endpoints, pods }
  return { state: previous === undefined ? next : shareUnchanged(next, previous), diagnostics }
}

function compileService(
  { metadata, spec = {} }: KubernetesObject,
  warn: (sentence: string) => void,
): ServiceEntry {
  const headless = spec.clusterIP === 'None'
  const external = spec.type === 'ExternalName'
  const clusterIPs = (spec.clusterIPs as string[] | undefined) ?? [spec.clusterIP as string]
  const affinity = spec.sessionAffinityConfig as { clientIP?: { timeoutSeconds?: number } } | undefined
  const distribution = String(spec.trafficDistribution ?? '')
  const ports = (spec.ports ?? []) as { name?: string; port?: number; protocol?: string }[]
  const entry = {
    namespace: metadata?.namespace ?? 'default',
    name: metadata?.name,
    kind: external ? 'externalName' : headless ? 'headless' : 'clusterIP',
    clusterIPs: headless || external ? [] : clusterIPs.filter((ip) => ip !== undefined).map(canonicalIP),
    externalName: external ? spec.externalName : undefined,
    ports: ports.map((p) => ({ name: p.name ?? '', port: p.port, protocol: p.protocol ?? 'TCP' })),
    affinitySeconds: spec.sessionAffinity === 'ClientIP' ? (affinity?.clientIP?.timeoutSeconds ?? 10_800) : 0,
    localOnly: spec.internalTrafficPolicy === 'Local',
    preferClose: distribution.startsWith('Prefer'),
    bypass: metadata?.labels?.noproxy === 'edgemesh',
    balancer: balancerOf(metadata?.annotations?.[balancerAnnotation], warn),
  }
  return serviceEntry(entry, 'Service') // the very check that sidecars make: one bad entry would stop them all
}

function balancerOf(text: string | undefined, warn: (sentence: string) => void): ServiceEntry['balancer'] {
  if (text === undefined || text === 'round-robin') return 'round-robin'
  if (text === 'least-request') return text
  warn(
    `annotation ${balancerAnnotation} is "${text}"; it must be round-robin or least-request. Using round-robin.`,
  )
  return 'round-robin'
}

/** Leaf lifetimes that namespaces ask for, by name; in ms. */
function compileNamespaces(manifests: readonly Manifest[], diagnostics: string[]): Map<string, number> {
  const lifetimes = new Map<string, number>()
  for (const { object, origin } of manifests) {
    const { kind, metadata } = (object ?? {}) as KubernetesObject
    if (kind !== 'Namespace' || typeof metadata?.name !== 'string') continue
    const ms = leafLifetimeOf(metadata, (sentence) => diagnostics.push(`${origin}: ${sentence}`))
    if (ms !== undefined) lifetimes.set(metadata.name, ms)
  }
  return lifetimes
}

function leafLifetimeOf(
  { annotations }: NonNullable<KubernetesObject['metadata']>,
  warn: (sentence: string) => void,
): number | undefined {
  const text = annotations?.[leafLifetimeAnnotation]
  if (text === undefined) return undefined
  const ms = parseLeafLifetime(String(text).trim())
  if (ms === undefined)
    warn(`annotation ${leafLifetimeAnnotation} is "${text}"; it ${leafLifetimeRule}. It is ignored.`)
  return ms
}

function compilePod(
  { metadata, spec = {}, status = {} }: KubernetesObject,
  namespaceLifetimeMs: number | undefined,
  warn: (sentence: string) => void,
): PodRecord {
  if (!metadata?.uid || !metadata.name) throw new Error('the Pod needs metadata.name and metadata.uid')
  const native = ((spec.initContainers ?? []) as ContainerSpec[]).filter((c) => c.restartPolicy === 'Always')
  const ports = [...((spec.containers ?? []) as ContainerSpec[]), ...native].flatMap((c) => c.ports ?? [])
  const tcp = ports.filter((p) => (p.protocol ?? 'TCP') === 'TCP').map((p) => Number(p.containerPort))
  const leafLifetimeMs = leafLifetimeOf(metadata, warn) ?? namespaceLifetimeMs
  return {
    uid: metadata.uid,
    namespace: metadata.namespace ?? 'default',
    name: metadata.name,
    serviceAccount: typeof spec.serviceAccountName === 'string' ? spec.serviceAccountName : 'default',
    ...(typeof spec.nodeName === 'string' ? { node: spec.nodeName } : {}),
    ips: addressesOf(status.podIPs, status.podIP),
    hostIPs: addressesOf(status.hostIPs, status.hostIP),
    ...(leafLifetimeMs === undefined ? {} : { leafLifetimeMs }),
    containerPorts: tcp.filter((p) => p > 0 && p < 65_536),
    sidecar: metadata.annotations?.[statusAnnotation] === 'injected',
    finished: status.phase === 'Succeeded' || status.phase === 'Failed',
  }
}

/** Of a status: the list, or before Kubernetes had it the one. */
function addressesOf(many: unknown, one: unknown): string[] {
  const ips = ((many ?? []) as { ip?: string }[]).map((p) => p.ip ?? '')
  if (ips.length === 0 && typeof one === 'string') ips.push(one)
  return ips.filter((ip) => isIP(ip) !== 0).map(canonicalIP)
}

/** Merges the slices of each service: the two families of one pod become one endpoint with two addresses. */
function compileEndpoints(
  slices: readonly { id: string; slice: Slice; origin: string }[],
  pods: ReadonlyMap<string, PodRecord>,
  diagnostics: string[],
): Map<string, readonly Endpoint[]> {
  const merged = new Map<string, Map<string, Endpoint>>()
  for (const { id, slice, origin } of slices) {
    if (slice.addressType === 'FQDN') continue
    const ofService = merged.get(id) ?? new Map<string, Endpoint>()
    merged.set(id, ofService)
    const ports = Array.isArray(slice.ports) ? slice.ports : []
    for (const raw of Array.isArray(slice.endpoints) ? slice.endpoints : []) {
      try {
        const sidecar = pods.get(podUidOf(raw) ?? '')?.sidecar === true
        const one = once(raw, [slice.ports, sidecar], noWarning, () => compileEndpoint(raw, ports, sidecar))
        const key = one.podUid ?? one.addresses[0] ?? ''
        const known = ofService.get(key)
        ofService.set(key, known === undefined ? one : mergeEndpoints(known, one))
      } catch (error) {
        diagnostics.push(`${origin}: an endpoint of ${id} is left out: ${sentenceOf(error)}`)
      }
    }
  }
  return new Map([...merged].map(([id, ofService]) => [id, [...ofService.values()]]))
}

const noWarning = () => undefined

function podUidOf({ targetRef }: SliceEndpoint): string | undefined {
  return targetRef?.kind === 'Pod' ? targetRef.uid : undefined
}

function compileEndpoint(
  raw: SliceEndpoint,
  ports: NonNullable<Slice['ports']>,
  hasSidecar: boolean,
): Endpoint {
  const podUid = podUidOf(raw)
  const ready = raw.conditions?.ready ?? true
  const tcp = ports.filter((p) => (p.protocol ?? 'TCP') === 'TCP' && p.port !== undefined)
  const forZones = raw.hints?.forZones?.map((z) => z.name)
  return endpointShape(
    {
      addresses: (raw.addresses ?? []).slice(0, 1).map(canonicalIP), // Kubernetes defines the first only
      podUid,
      podName: podUid === undefined ? undefined : raw.targetRef?.name,
      hostname: raw.hostname,
      node: raw.nodeName,
      zone: raw.zone,
      forZones,
      ready,
      serving: raw.conditions?.serving ?? ready,
      terminating: raw.conditions?.terminating ?? false,
      ports: Object.fromEntries(tcp.map((p) => [p.name ?? '', p.port])),
      sidecar: hasSidecar,
    },
    'EndpointSlice',
  )
}

function mergeEndpoints(a: Endpoint, b: Endpoint): Endpoint {
  const addresses = [...new Set([...a.addresses, ...b.addresses])].slice(0, 2)
  return { ...a, addresses, ports: { ...a.ports, ...b.ports }, ready: a.ready && b.ready }
}

/** One spelling for each address, so that addresses can be compared as text (RFC 5952 for IPv6). */
export function canonicalIP(address: string): string {
  if (isIP(address) !== 6) return address
  return new URL(`http://[${address}]`).hostname.slice(1, -1)
}

function shareUnchanged(next: CatalogueState, previous: CatalogueState): CatalogueState {
  return {
    services: shareMap(next.services, previous.services),
    endpoints: shareMap(next.endpoints, previous.endpoints),
    pods: shareMap(next.pods, previous.pods),
  }
}

function shareMap<T>(next: ReadonlyMap<string, T>, previous: ReadonlyMap<string, T>): ReadonlyMap<string, T> {
  let same = next.size === previous.size
  const shared = new Map<string, T>()
  for (const [key, value] of next) {
    const before = previous.get(key)
    const unchanged = before !== undefined && isDeepStrictEqual(value, before)
    same &&= unchanged
    shared.set(key, unchanged ? before : value)
  }
  return same ? previous : shared
}
