import { CaSecret } from '#shared/authority/ca-secret.ts'
import { KubernetesClient } from '#shared/kubernetes/client.ts'
import type { Logger } from '#shared/log.ts'
import { watchCluster } from '../catalogue/kubernetes.ts'
import type { KubernetesBackend } from '../config.ts'
import { KubernetesDirectory } from '../mesh/kubernetes-directory.ts'
import { Presence } from '../mesh/presence.ts'
import { MeshPublisher } from '../mesh/publisher.ts'
import type { ServerMetrics } from '../server-metrics.ts'
import { TokenReviewVerifier } from '../token-verifier/kubernetes.ts'
import type { Backend } from './backend.ts'

const caSecretName = 'edgemesh-ca'
const caEveryMs = 30_000

export interface KubernetesOptions extends Omit<KubernetesBackend, 'kind'> {
  port: number
  trustDomain: string
  replica: string
  /** In ms. */
  leafLifetime: number
  metrics: ServerMetrics
  log: Logger
}

/** In Kubernetes: the API server has the services and pods, verifies tokens, and keeps the CA in a Secret. */
export async function openKubernetes(options: KubernetesOptions): Promise<Backend> {
  const { kubeconfig, namespace, trustDomain, clusterDomain, metrics, log } = options
  const client = KubernetesClient.load(
    { file: kubeconfig },
    { onRequest: (method, outcome) => metrics.kubernetesRequests.inc({ method, outcome }) },
  )
  let publisher: MeshPublisher | undefined
  const ca = await CaSecret.open({
    ...{ client, namespace, trustDomain, log },
    name: caSecretName,
    caLifetimeMs: options.caLifetime,
    leafLifetimeMs: options.leafLifetime,
    everyMs: caEveryMs,
    onBundle: () => publisher?.now(),
  })
  const source = await watchCluster(client, log)
  publisher = new MeshPublisher({
    ...{ client, namespace, trustDomain, clusterDomain, log },
    service: options.service,
    addresses: options.publicAddress,
    serviceCidrs: options.serviceCidrs,
    hostPort: options.hostNetwork ? options.port : undefined,
    trustBundle: () => ca.authority.trustBundle,
  })
  publisher.start()
  metrics.gauge('kubernetes_lists', 'Whole lists read from the API server.', () => source.lists)
  const { replica, port } = options
  const pods = () => source.state.pods
  const directory = new KubernetesDirectory({ client, namespace, replica, port, pods, log })
  directory.start()
  let presence: Presence | undefined
  return {
    announce(present) {
      const podUid = process.env.POD_UID
      presence = new Presence({
        client,
        namespace,
        replica,
        podUid,
        present,
        pods,
        log,
      })
      presence.start()
    },
    source,
    authority: ca.authority,
    directory,
    verifier: new TokenReviewVerifier(client),
    async close() {
      ca.close()
      await Promise.all([source.close(), directory.close(), publisher?.close(), presence?.close()])
    },
  }
}
