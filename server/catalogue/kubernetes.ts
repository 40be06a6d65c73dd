import type { KubernetesClient, KubernetesObject } from '#shared/kubernetes/client.ts'
import { Reflector } from '#shared/kubernetes/reflector.ts'
import { leafLifetimeAnnotation } from '#shared/lifetimes.ts'
import type { Logger } from '#shared/log.ts'
import { balancerAnnotation, compile, type Manifest, statusAnnotation } from './compile.ts'
import { type CatalogueSource, type CatalogueState, emptyState } from './source.ts'

/** Changes come in bursts (a rollout): those of so many ms are compiled together. */
const gatherMs = 50

export interface KubernetesSource extends CatalogueSource {
  /** Lists made since the start, of all kinds; each is a whole reading of the API server. */
  readonly lists: number
}

/** The Kubernetes API as a catalogue source. Resolves after the first complete reading. */
export async function watchCluster(client: KubernetesClient, log: Logger): Promise<KubernetesSource> {
  const source = new ClusterSource(client, log)
  await source.start()
  return source
}

class ClusterSource implements KubernetesSource {
  readonly #reflectors: readonly Reflector<Manifest>[]
  readonly #listeners = new Set<(next: CatalogueState, previous: CatalogueState) => void>()
  readonly #log: Logger
  #timer: NodeJS.Timeout | undefined
  #complete = false
  #reported = new Set<string>()
  state: CatalogueState = emptyState

  constructor(client: KubernetesClient, log: Logger) {
    this.#log = log
    const onChange = () => {
      if (this.#complete) this.#timer ??= setTimeout(() => this.#publish(), gatherMs)
    }
    const kinds = [
      { path: '/api/v1/services', query: {}, kind: 'Service', keep: keepService },
      // Others than those of services are no business of ours; our own presence is among them.
      {
        path: '/apis/discovery.k8s.io/v1/endpointslices',
        query: { labelSelector: 'kubernetes.io/service-name' },
        kind: 'EndpointSlice',
        keep: keepSlice,
      },
      { path: '/api/v1/pods', query: {}, kind: 'Pod', keep: keepPod },
      { path: '/api/v1/namespaces', query: {}, kind: 'Namespace', keep: keepNamespace },
    ]
    this.#reflectors = kinds.map(
      ({ path, query, kind, keep }) =>
        new Reflector<Manifest>({
          client,
          path,
          query,
          keep: (o) => ({
            object: { kind, ...keep(o) },
            origin: `${kind} ${o.metadata.namespace}/${o.metadata.name}`,
          }),
          onChange,
          log,
        }),
    )
  }

  get lists(): number {
    return this.#reflectors.reduce((sum, r) => sum + r.lists, 0)
  }

  async start(): Promise<void> {
    await Promise.all(this.#reflectors.map((r) => r.start()))
    this.#complete = true
    this.#publish()
  }

  onChange(listener: (next: CatalogueState, previous: CatalogueState) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  async close(): Promise<void> {
    clearTimeout(this.#timer)
    await Promise.all(this.#reflectors.map((r) => r.close()))
  }

  #publish(): void {
    this.#timer = undefined
    const previous = this.state
    const manifests = this.#reflectors.flatMap((r) => [...r.objects.values()])
    const { state, diagnostics } = compile(manifests, previous)
    for (const d of diagnostics) if (!this.#reported.has(d)) this.#log.warn(d)
    this.#reported = new Set(diagnostics)
    const { services, endpoints, pods } = previous
    if (state.services === services && state.endpoints === endpoints && state.pods === pods) return
    this.state = state
    for (const listener of this.#listeners) listener(state, previous)
  }
}

type Raw = KubernetesObject & {
  spec?: Record<string, unknown>
  status?: Record<string, unknown>
  addressType?: unknown
  endpoints?: unknown
  ports?: unknown
}

const pick = (object: Record<string, unknown> | undefined, ...keys: string[]) =>
  Object.fromEntries(
    keys.filter((k) => object?.[k] !== undefined).map((k) => [k, (object as Record<string, unknown>)[k]]),
  )

const names = ({ metadata }: Raw) => ({ name: metadata.name, namespace: metadata.namespace })

/** Only what compile reads is kept: with thousands of objects the rest (managedFields, specs) would be most of it. */
function keepService(o: Raw) {
  return {
    metadata: {
      ...names(o),
      labels: pick(o.metadata.labels, 'noproxy'),
      annotations: pick(o.metadata.annotations, balancerAnnotation),
    },
    spec: {
      ...pick(
        o.spec,
        'type',
        'clusterIP',
        'clusterIPs',
        'externalName',
        'sessionAffinity',
        'sessionAffinityConfig',
        'internalTrafficPolicy',
        'trafficDistribution',
      ),
      ports: listOf(o.spec?.ports).map((p) => pick(p, 'name', 'port', 'protocol')),
    },
  }
}

function keepSlice(o: Raw) {
  return {
    metadata: { ...names(o), labels: pick(o.metadata.labels, 'kubernetes.io/service-name') },
    ...pick(o as unknown as Record<string, unknown>, 'addressType', 'endpoints', 'ports'),
  }
}

function keepPod(o: Raw) {
  const containers = (list: unknown) => listOf(list).map((c) => pick(c, 'ports', 'restartPolicy'))
  return {
    metadata: {
      ...names(o),
      uid: o.metadata.uid,
      annotations: pick(o.metadata.annotations, statusAnnotation, leafLifetimeAnnotation),
    },
    spec: {
      ...pick(o.spec, 'serviceAccountName', 'nodeName'),
      containers: containers(o.spec?.containers),
      initContainers: containers(o.spec?.initContainers).filter((c) => c.restartPolicy === 'Always'),
    },
    status: pick(o.status, 'podIPs', 'podIP', 'hostIPs', 'hostIP', 'phase'),
  }
}

function keepNamespace({ metadata }: Raw) {
  return {
    metadata: { name: metadata.name, annotations: pick(metadata.annotations, leafLifetimeAnnotation) },
  }
}

function listOf(value: unknown): Record<string, unknown>[] {
  return Array.isArray(value) ? value : []
}
