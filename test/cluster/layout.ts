// Where everything of a cluster is. Pure.
//
//   cloud 10.90.0.1 (control plane, node) -- 10.90.0.2 nat 192.168.90.1 -- 192.168.90.2 edge (node)
//
// All of it is in network namespaces of its own, so every cluster has the same addresses.

export type ClusterNode = 'cloud' | 'edge'
/** The network namespaces of a cluster: its nodes, and the router in front of the edge. */
export type Place = ClusterNode | 'nat'

export const nodes: readonly ClusterNode[] = ['cloud', 'edge']
export const places: readonly Place[] = ['cloud', 'nat', 'edge']

export const addresses = {
  cloud: '10.90.0.1',
  natWan: '10.90.0.2',
  natLan: '192.168.90.1',
  edge: '192.168.90.2',
}
export const podCidr = '10.244.0.0/16'
export const podCidrs: Readonly<Record<ClusterNode, string>> = {
  cloud: '10.244.1.0/24',
  edge: '10.244.2.0/24',
}
export const serviceCidr = '10.240.0.0/16'
/** The first address of the service CIDR is the API server's, as everywhere. */
export const apiServerClusterIP = '10.240.0.1'
export const clusterDns = '10.240.0.10'
export const clusterDomain = 'cluster.local'
export const apiServerUrl = `https://${addresses.cloud}:6443`
export const kubeletPort = 10250

/** Names that a test may use in its pods without loading them. */
export const images = { pause: 'edgemesh.test/pause:1', busybox: 'edgemesh.test/busybox:1' } as const

/**
 * Folder of the states of all clusters. Neither /run nor below /var/lib: a node sees its own there. Not $TMPDIR: it
 * may be memory, and a cluster writes some 200 MB of images and logs.
 */
export const clustersFolder = '/var/tmp/edgemesh-cluster'

/** Names of a cluster's network namespace and cgroup: they begin as the lab's, which is how people know ours. */
export function namespaceIn(cluster: string, place: Place): string {
  return `em-kc-${cluster}-${place}`
}

export function cgroupIn(cluster: string, part: ClusterNode | 'control'): string {
  return `em-kc-${cluster}-${part}`
}
