import { EdgeMeshError } from '#shared/errors.ts'
import type { KubernetesClient, KubernetesObject } from '#shared/kubernetes/client.ts'
import { Reflector } from '#shared/kubernetes/reflector.ts'
import type { Logger } from '#shared/log.ts'
import { fromConfigData, type MeshConfig, meshConfigMap } from '#shared/mesh-config.ts'
import { inheritedAnnotations } from './annotations.ts'
import type { MeshSettings } from './mesh-settings.ts'

/** The first minor version of Kubernetes 1 that has native sidecars on by default. */
const nativeSince = 29

/** What counts of a namespace. */
export interface NamespaceRecord {
  labels: Record<string, string>
  annotations: Record<string, string>
}

export interface MeshSourceOptions {
  client: KubernetesClient
  namespace: string
  image: string
  log: Logger
}

/** What the webhook knows of the cluster: the mesh's settings, ignored services, and what namespaces say. */
export class MeshSource {
  readonly #options: MeshSourceOptions
  readonly #config: Reflector<MeshConfig>
  readonly #namespaces: Reflector<NamespaceRecord>
  readonly #ignored: Reflector<string[]>
  #nativeSidecar = false

  constructor(options: MeshSourceOptions) {
    const { client, namespace, log } = options
    const onChange = () => undefined
    this.#options = options
    this.#config = new Reflector<MeshConfig>({
      ...{ client, onChange, log },
      path: `/api/v1/namespaces/${namespace}/configmaps`,
      query: { fieldSelector: `metadata.name=${meshConfigMap}` },
      keep: (object) => fromConfigData((object as KubernetesObject & { data?: Record<string, string> }).data),
    })
    this.#namespaces = new Reflector({
      ...{ client, onChange, log },
      path: '/api/v1/namespaces',
      keep: recordOf,
    })
    this.#ignored = new Reflector({
      ...{ client, onChange, log },
      path: '/api/v1/services',
      query: { labelSelector: 'noproxy=edgemesh' },
      keep: (object) => clusterIPsOf(object),
    })
  }

  async start(): Promise<void> {
    const { client } = this.#options
    this.#nativeSidecar = hasNativeSidecars(await client.get<{ major?: string; minor?: string }>('/version'))
    await Promise.all([this.#config.start(), this.#namespaces.start(), this.#ignored.start()])
  }

  async close(): Promise<void> {
    await Promise.all([this.#config.close(), this.#namespaces.close(), this.#ignored.close()])
  }

  /** Whether the server has said what the mesh is. */
  get known(): boolean {
    return this.#config.objects.size > 0
  }

  /** `not-connected` while the server has not published the mesh's configuration. */
  settings(): MeshSettings {
    const [config] = this.#config.objects.values()
    const { namespace, image } = this.#options
    if (config === undefined) {
      throw new EdgeMeshError(
        'not-connected',
        `Cannot inject: the ConfigMap ${namespace}/${meshConfigMap} does not exist yet; the server writes it when it starts.`,
      )
    }
    return {
      ...config,
      image,
      ignoredServiceIps: [...this.#ignored.objects.values()].flat().sort(),
      nativeSidecar: this.#nativeSidecar,
      ownNamespace: namespace,
    }
  }

  /** A pod may come faster than the news of its namespace: `expected` is a label that it must have. */
  async namespaceOf(name: string, expected: string | undefined): Promise<NamespaceRecord> {
    const known = this.#namespaces.objects.get(`/${name}`)
    if (known !== undefined && (expected === undefined || expected in known.labels)) return known
    const found = await this.#options.client.find(`/api/v1/namespaces/${name}`)
    return found === undefined ? { labels: {}, annotations: {} } : recordOf(found)
  }
}

function recordOf({ metadata }: KubernetesObject): NamespaceRecord {
  return { labels: metadata.labels ?? {}, annotations: inheritedAnnotations(metadata.annotations) }
}

export function hasNativeSidecars({ major = '', minor = '' }: { major?: string; minor?: string }): boolean {
  return Number.parseInt(major, 10) > 1 || Number.parseInt(minor, 10) >= nativeSince
}

function clusterIPsOf(object: KubernetesObject): string[] {
  const { spec } = object as KubernetesObject & { spec?: { clusterIP?: string; clusterIPs?: string[] } }
  return (spec?.clusterIPs ?? [spec?.clusterIP ?? '']).filter((ip) => ip !== '' && ip !== 'None')
}
