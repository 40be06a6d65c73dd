import { EdgeMeshError } from './errors.ts'

/** The ConfigMap in the mesh's own namespace that the server keeps and the injector and the CLI read. */
export const meshConfigMap = 'edgemesh-mesh'

/** What a pod must know of the mesh to be a part of it. */
export interface MeshConfig {
  /** `host:port` of the server, from outside of the cluster; empty where it is not known yet. */
  servers: string[]
  /** PEM. */
  trustBundle: string
  trustDomain: string
  clusterDomain: string
  serviceCidrs: string[]
}

export function toConfigData(config: MeshConfig): Record<string, string> {
  return {
    servers: config.servers.join(','),
    'ca.crt': config.trustBundle,
    trustDomain: config.trustDomain,
    clusterDomain: config.clusterDomain,
    serviceCidrs: config.serviceCidrs.join(','),
  }
}

/** `bad-config` when it is not such a ConfigMap's data. */
export function fromConfigData(data: Record<string, unknown> | undefined): MeshConfig {
  const text = (key: string): string => {
    const value = data?.[key]
    if (typeof value === 'string') return value
    throw new EdgeMeshError(
      'bad-config',
      `Cannot read the mesh configuration: "${key}" is missing. The server writes the ConfigMap ${meshConfigMap}; is it running?`,
    )
  }
  const list = (key: string) =>
    text(key)
      .split(',')
      .map((s) => s.trim())
      .filter((s) => s !== '')
  return {
    servers: list('servers'),
    trustBundle: text('ca.crt'),
    trustDomain: text('trustDomain'),
    clusterDomain: text('clusterDomain'),
    serviceCidrs: list('serviceCidrs'),
  }
}
