import { type KubernetesClient, KubernetesError } from '#shared/kubernetes/client.ts'

/** The refusal of a clusterIP outside of the range names the range. */
const rangeInRefusal = /range of valid IPs is ([0-9a-f.:/]+)/i

/**
 * The CIDRs that clusterIPs come from: the ServiceCIDR API (1.33 and later), else the range that the API server names when
 * it refuses an impossible clusterIP (a dry run, nothing is made), else nothing.
 */
export async function findServiceCidrs(client: KubernetesClient, namespace: string): Promise<string[]> {
  for (const version of ['v1', 'v1beta1']) {
    const cidrs: string[] = []
    try {
      await client.list<{ spec?: { cidrs?: string[] } }>(
        `/apis/networking.k8s.io/${version}/servicecidrs`,
        {},
        ({ spec }) => cidrs.push(...(spec?.cidrs ?? [])),
      )
    } catch (error) {
      if (!(error instanceof KubernetesError && error.status === 404)) throw error
    }
    if (cidrs.length > 0) return [...new Set(cidrs)].sort()
  }
  const probed = await Promise.all(['0.0.0.1', '::1'].map((ip) => probe(client, namespace, ip)))
  return probed.filter((cidr) => cidr !== undefined)
}

async function probe(
  client: KubernetesClient,
  namespace: string,
  clusterIP: string,
): Promise<string | undefined> {
  const body = {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: { generateName: 'edgemesh-probe-' },
    spec: { clusterIP, ports: [{ port: 443 }] },
  }
  try {
    await client.request('POST', `/api/v1/namespaces/${namespace}/services`, {
      body,
      query: { dryRun: 'All' },
    })
    return undefined
  } catch (error) {
    if (!(error instanceof KubernetesError)) throw error
    return rangeIn(error.message)
  }
}

export function rangeIn(refusal: string): string | undefined {
  return rangeInRefusal.exec(refusal)?.[1]
}
