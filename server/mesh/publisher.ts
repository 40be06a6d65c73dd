import { sentenceOf } from '#shared/errors.ts'
import { type KubernetesClient, KubernetesError, type KubernetesObject } from '#shared/kubernetes/client.ts'
import { pause } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import { type MeshConfig, meshConfigMap, toConfigData } from '#shared/mesh-config.ts'
import { type NodeLike, publicAddress, type ServiceLike } from './public-address.ts'
import { findServiceCidrs } from './service-cidrs.ts'

const everyMs = 15_000

export interface PublisherOptions {
  client: KubernetesClient
  namespace: string
  /** Of the Service in front of the server. */
  service: string
  trustDomain: string
  clusterDomain: string
  /** Configured by the user; empty: found out. */
  addresses: readonly string[]
  serviceCidrs: readonly string[]
  /** Set where the server runs with host network. */
  hostPort: number | undefined
  trustBundle: () => string
  log: Logger
}

/**
 * Keeps the ConfigMap that says what the mesh is: where the server is, whom to trust, which addresses are services. The injector
 * and the CLI read nothing else, and replicas that find the same write nothing.
 */
export class MeshPublisher {
  readonly #options: PublisherOptions
  readonly #aborter = new AbortController()
  #running: Promise<void> | undefined
  #wake = Promise.withResolvers<void>()
  #said = ''

  constructor(options: PublisherOptions) {
    this.#options = options
  }

  start(): void {
    this.#running ??= this.#run()
  }

  /** Something changed: do not wait for the next round. */
  readonly now = (): void => this.#wake.resolve()

  async close(): Promise<void> {
    this.#aborter.abort()
    this.#wake.resolve()
    await this.#running
  }

  async #run(): Promise<void> {
    while (!this.#aborter.signal.aborted) {
      this.#wake = Promise.withResolvers()
      try {
        await this.#publish()
      } catch (error) {
        this.#options.log.warn({ error: sentenceOf(error) }, 'cannot publish the mesh configuration now')
      }
      await Promise.race([pause(everyMs, this.#aborter.signal), this.#wake.promise])
    }
  }

  async #publish(): Promise<void> {
    const { client, namespace, log } = this.#options
    const path = `/api/v1/namespaces/${namespace}/configmaps`
    const data = toConfigData(await this.#find())
    const stored = await client.find<KubernetesObject & { data?: object }>(`${path}/${meshConfigMap}`)
    if (JSON.stringify(sorted(stored?.data)) === JSON.stringify(sorted(data))) return
    const metadata = { name: meshConfigMap, namespace }
    const body = { apiVersion: 'v1', kind: 'ConfigMap', metadata, data }
    try {
      if (stored === undefined) await client.request('POST', path, { body })
      else await client.request('PUT', `${path}/${meshConfigMap}`, { body })
      log.info({ servers: data.servers, serviceCidrs: data.serviceCidrs }, 'published the mesh configuration')
    } catch (error) {
      if (error instanceof KubernetesError && error.status === 409) return // another replica did; next round
      throw error
    }
  }

  async #find(): Promise<MeshConfig> {
    const { client, namespace, service, trustDomain, clusterDomain, log } = this.#options
    const { addresses, why } = await this.#address()
    if (addresses.length === 0 && this.#said !== why) log.warn({ service: `${namespace}/${service}` }, why)
    this.#said = why
    const { serviceCidrs: configured } = this.#options
    const serviceCidrs = configured.length > 0 ? [...configured] : await findServiceCidrs(client, namespace)
    return {
      servers: addresses,
      trustBundle: this.#options.trustBundle(),
      trustDomain,
      clusterDomain,
      serviceCidrs,
    }
  }

  async #address() {
    const { client, namespace, service, addresses, hostPort } = this.#options
    if (addresses.length > 0) return publicAddress(addresses, undefined, [], undefined)
    const found = await client.find<ServiceLike>(`/api/v1/namespaces/${namespace}/services/${service}`)
    const nodes: NodeLike[] = []
    if (hostPort !== undefined || found?.spec?.type === 'NodePort')
      await client.list<NodeLike>('/api/v1/nodes', {}, ({ metadata, status }) =>
        nodes.push({ metadata: { name: metadata.name }, ...(status === undefined ? {} : { status }) }),
      )
    if (hostPort === undefined) return publicAddress([], found, nodes, undefined)
    const on: string[] = []
    const query = { labelSelector: `app.kubernetes.io/name=${service}` }
    await client.list<{ spec?: { nodeName?: string } }>(
      `/api/v1/namespaces/${namespace}/pods`,
      query,
      (pod) => on.push(pod.spec?.nodeName ?? ''),
    )
    return publicAddress([], found, nodes, { port: hostPort, nodes: on })
  }
}

function sorted(data: object | undefined): [string, unknown][] {
  return Object.entries(data ?? {}).sort(([a], [b]) => (a < b ? -1 : 1))
}
