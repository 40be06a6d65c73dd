import { X509Certificate } from 'node:crypto'
import { connect } from 'node:net'
import { sentenceOf } from '#shared/errors.ts'
import { type KubernetesClient, KubernetesError, type KubernetesObject } from '#shared/kubernetes/client.ts'
import { fromConfigData, type MeshConfig, meshConfigMap } from '#shared/mesh-config.ts'
import { initName, injectLabel, namespaceLabel, sidecarName } from '../mesh-settings.ts'
import { hasNativeSidecars } from '../mesh-source.ts'
import { certificateFinding, type Finding, failure, ok, podSecurityFinding, warning } from './findings.ts'

const reachDeadlineMs = 5_000
const shown = 5

interface Webhooks {
  webhooks?: { name: string; failurePolicy?: string; clientConfig?: { caBundle?: string } }[]
}
type Deployment = KubernetesObject & { spec?: { replicas?: number }; status?: { readyReplicas?: number } }
type PodObject = KubernetesObject & {
  spec?: { containers?: { name: string }[]; initContainers?: { name: string }[]; hostNetwork?: boolean }
  status?: { phase?: string }
}

/** Looks at everything that must be right, before and after installing. A check that cannot be made is a failure. */
export async function check(client: KubernetesClient, namespace: string): Promise<Finding[]> {
  const checks: [string, () => Promise<Finding | Finding[]>][] = [
    ['API server', () => apiServer(client)],
    ['permissions', () => permissions(client, namespace)],
    ['mesh configuration', () => meshConfiguration(client, namespace)],
    ['server', () => deployment(client, namespace, 'edgemesh-server', 'server')],
    ['injector', () => deployment(client, namespace, 'edgemesh-injector', 'injector')],
    ['webhook', () => webhook(client)],
    ['namespaces', () => namespaces(client)],
  ]
  const findings: Finding[] = []
  for (const [name, look] of checks) {
    try {
      findings.push(...[await look()].flat())
    } catch (error) {
      findings.push(failure(name, sentenceOf(error), 'this could not be checked; see the reason'))
      if (error instanceof KubernetesError && error.status === 0) break // nothing else can be asked either
    }
  }
  return findings
}

async function apiServer(client: KubernetesClient): Promise<Finding> {
  const version = await client.get<{ major?: string; minor?: string; gitVersion?: string }>('/version')
  if (hasNativeSidecars(version)) return ok('API server', `${version.gitVersion}, with native sidecars`)
  return warning(
    'API server',
    `${version.gitVersion}, without native sidecars`,
    'Jobs are not meshed; 1.29 or later has them',
  )
}

/** What installing takes. */
async function permissions(client: KubernetesClient, namespace: string): Promise<Finding> {
  const wanted = [
    { group: 'admissionregistration.k8s.io', resource: 'mutatingwebhookconfigurations', verb: 'create' },
    { group: 'rbac.authorization.k8s.io', resource: 'clusterroles', verb: 'create' },
    { group: 'apps', resource: 'deployments', verb: 'create', namespace },
  ]
  const missing: string[] = []
  for (const resourceAttributes of wanted) {
    const body = {
      apiVersion: 'authorization.k8s.io/v1',
      kind: 'SelfSubjectAccessReview',
      spec: { resourceAttributes },
    }
    const path = '/apis/authorization.k8s.io/v1/selfsubjectaccessreviews'
    const { status } = await client.request<{ status?: { allowed?: boolean } }>('POST', path, { body })
    if (status?.allowed !== true) missing.push(`${resourceAttributes.verb} ${resourceAttributes.resource}`)
  }
  if (missing.length === 0) return ok('permissions', 'you may install the mesh')
  return warning(
    'permissions',
    `you may not ${missing.join(', ')}`,
    'installing needs a cluster administrator',
  )
}

async function meshConfiguration(client: KubernetesClient, namespace: string): Promise<Finding[]> {
  const path = `/api/v1/namespaces/${namespace}/configmaps/${meshConfigMap}`
  const found = await client.find<KubernetesObject & { data?: Record<string, string> }>(path)
  if (found === undefined)
    return [
      failure('mesh configuration', 'there is none yet', 'install the mesh: kubectl apply -k manifests/base'),
    ]
  const mesh = fromConfigData(found.data)
  return [...(await serverAddress(mesh)), serviceCidrs(mesh), ...trustRoots(mesh)]
}

async function serverAddress({ servers }: MeshConfig): Promise<Finding[]> {
  const name = 'server address'
  if (servers.length === 0)
    return [
      failure(
        name,
        'not known',
        'set EDGEMESH_PUBLIC_ADDRESS=host:port on the server, or give its Service a load balancer',
      ),
    ]
  return Promise.all(
    servers.map(async (server) => {
      const problem = await reach(server)
      if (problem === undefined) return ok(name, `${server} takes connections from here`)
      return warning(
        name,
        `${server} does not take connections from here: ${problem}`,
        'pods at the edge must reach it; look at firewall and load balancer',
      )
    }),
  )
}

function reach(server: string): Promise<string | undefined> {
  const { host = '', port } = /^\[?(?<host>.*?)\]?:(?<port>\d+)$/.exec(server)?.groups ?? {}
  const { promise, resolve } = Promise.withResolvers<string | undefined>()
  const socket = connect({ host, port: Number(port), timeout: reachDeadlineMs })
  socket.once('connect', () => resolve(undefined))
  socket.once('timeout', () => resolve(`no answer within ${reachDeadlineMs / 1_000} s`))
  socket.once('error', (error) => resolve(error.message))
  return promise.finally(() => socket.destroy())
}

function serviceCidrs({ serviceCidrs: cidrs }: MeshConfig): Finding {
  if (cidrs.length > 0) return ok('service CIDRs', cidrs.join(', '))
  return failure('service CIDRs', 'not known', 'set EDGEMESH_SERVICE_CIDRS on the server')
}

function trustRoots({ trustBundle }: MeshConfig): Finding[] {
  return rootsOf(trustBundle).map((c) => certificateFinding('trust root', Date.parse(c.validTo), Date.now()))
}

function rootsOf(bundle: string): X509Certificate[] {
  const pems = bundle.match(/-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g) ?? []
  return pems.map((pem) => new X509Certificate(pem))
}

async function deployment(
  client: KubernetesClient,
  namespace: string,
  name: string,
  label: string,
): Promise<Finding> {
  const found = await client.find<Deployment>(`/apis/apps/v1/namespaces/${namespace}/deployments/${name}`)
  if (found === undefined) return failure(label, 'not installed', 'kubectl apply -k manifests/base')
  const [ready, wanted] = [found.status?.readyReplicas ?? 0, found.spec?.replicas ?? 1]
  const text = `${ready} of ${wanted} replicas ready`
  if (ready >= wanted && wanted > 0) return ok(label, text)
  const hint = `kubectl -n ${namespace} describe deployment ${name}, and its pods' logs`
  if (ready > 0) return warning(label, text, hint)
  const effect = label === 'injector' ? '; new pods start unmeshed (failurePolicy Ignore)' : ''
  return failure(label, text + effect, hint)
}

/** The configuration, its caBundle, and a pod that is created as a dry run only. */
async function webhook(client: KubernetesClient): Promise<Finding[]> {
  const path = '/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/edgemesh-injector'
  const found = await client.find<Webhooks>(path)
  if (found === undefined) return [failure('webhook', 'not installed', 'kubectl apply -k manifests/base')]
  const [first] = found.webhooks ?? []
  const bundle = Buffer.from(first?.clientConfig?.caBundle ?? '', 'base64').toString()
  if (bundle === '')
    return [
      failure('webhook', 'it has no caBundle', 'the injector writes it when it starts; look at its log'),
    ]
  const roots = rootsOf(bundle).map((c) =>
    certificateFinding('webhook root', Date.parse(c.validTo), Date.now()),
  )
  return [await injects(client, first?.failurePolicy ?? 'Ignore'), ...roots]
}

async function injects(client: KubernetesClient, policy: string): Promise<Finding> {
  const metadata = { generateName: 'edgemesh-check-', labels: { [injectLabel]: 'true' } }
  const spec = { containers: [{ name: 'check', image: 'check' }] }
  const body = { apiVersion: 'v1', kind: 'Pod', metadata, spec }
  const made = await client.request<PodObject>('POST', '/api/v1/namespaces/default/pods', {
    body,
    query: { dryRun: 'All' },
  })
  if (made.spec?.initContainers?.some((c) => c.name === initName))
    return ok('webhook', `it injects (failurePolicy ${policy})`)
  return failure(
    'webhook',
    'a pod that asks for injection was not injected',
    'the API server must reach the injector at port 8443: not from an edge node, and through no NetworkPolicy',
  )
}

async function namespaces(client: KubernetesClient): Promise<Finding[]> {
  const meshed: KubernetesObject[] = []
  await client.list<KubernetesObject>('/api/v1/namespaces', {}, (n) => {
    if (n.metadata.labels?.[namespaceLabel] === 'enabled') meshed.push(n)
  })
  if (meshed.length === 0)
    return [warning('namespaces', 'none is meshed', `kubectl label namespace NAME ${namespaceLabel}=enabled`)]
  const findings: Finding[] = []
  for (const { metadata } of meshed) {
    findings.push(podSecurityFinding(metadata.name, metadata.labels ?? {}))
    const without: string[] = []
    await client.list<PodObject>(`/api/v1/namespaces/${metadata.name}/pods`, {}, (pod) => {
      if (isUnmeshed(pod)) without.push(pod.metadata.name)
    })
    if (without.length === 0) continue
    const some = without.slice(0, shown).join(', ')
    findings.push(
      warning(
        `namespace ${metadata.name}`,
        `${without.length} running pods have no sidecar: ${some}${without.length > shown ? ', ...' : ''}`,
        'they started before the label or while the injector was away; restart their owners (kubectl rollout restart)',
      ),
    )
  }
  return findings
}

function isUnmeshed({ metadata, spec, status }: PodObject): boolean {
  if (metadata.labels?.[injectLabel] === 'false' || spec?.hostNetwork === true || status?.phase !== 'Running')
    return false
  return ![...(spec?.initContainers ?? []), ...(spec?.containers ?? [])].some((c) => c.name === sidecarName)
}
