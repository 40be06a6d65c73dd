import { isIP } from 'node:net'

export interface ServiceLike {
  spec?: { type?: string; ports?: { port?: number; nodePort?: number; name?: string }[] }
  status?: { loadBalancer?: { ingress?: { ip?: string; hostname?: string }[] } }
}

export interface NodeLike {
  metadata: { name: string }
  status?: { addresses?: { type?: string; address?: string }[] }
}

export interface PublicAddress {
  /** `host:port`, sorted; empty where the cluster does not know it. */
  addresses: string[]
  /** Where they come from, or what to do about there being none. */
  why: string
}

const limit = 8

/**
 * Where sidecars at other sites reach the server: what was configured, the load balancer, or the node port at the nodes' external addresses;
 * with host network the external addresses of the server's own nodes.
 */
export function publicAddress(
  configured: readonly string[],
  service: ServiceLike | undefined,
  nodes: readonly NodeLike[],
  host: { port: number; nodes: readonly string[] } | undefined,
): PublicAddress {
  if (configured.length > 0) return { addresses: [...configured], why: 'configured' }
  if (host !== undefined) {
    const own = nodes.filter((n) => host.nodes.includes(n.metadata.name))
    return known(at(externalOf(own), host.port), 'external addresses of the nodes that run the server')
  }
  const port = service?.spec?.ports?.find((p) => p.name === 'mesh') ?? service?.spec?.ports?.[0]
  if (service?.spec?.type === 'LoadBalancer') {
    const ingress = (service.status?.loadBalancer?.ingress ?? []).map((i) => i.hostname ?? i.ip ?? '')
    return known(at(ingress, port?.port), 'status of the LoadBalancer Service')
  }
  if (service?.spec?.type === 'NodePort')
    return known(at(externalOf(nodes), port?.nodePort), 'node port at the external addresses of the nodes')
  return known([], `Service of type ${service?.spec?.type ?? 'none'}`)
}

function known(addresses: string[], why: string): PublicAddress {
  if (addresses.length > 0) return { addresses: addresses.sort().slice(0, limit), why }
  return {
    addresses,
    why: `the cluster does not know the server's public address (${why}); set EDGEMESH_PUBLIC_ADDRESS=host:port on the server`,
  }
}

function at(hosts: readonly string[], port: number | undefined): string[] {
  if (port === undefined) return []
  return hosts.filter((h) => h !== '').map((h) => (isIP(h) === 6 ? `[${h}]:${port}` : `${h}:${port}`))
}

function externalOf(nodes: readonly NodeLike[]): string[] {
  const addresses = nodes.flatMap((n) => n.status?.addresses ?? [])
  return addresses.filter((a) => a.type === 'ExternalIP').map((a) => a.address ?? '')
}
