/** The lab's network as data: who is where, with which addresses. Pure; network.ts acts on it. */

export const serverAddress = '203.0.113.10'
export const dnsAddress = '203.0.113.53'
export const serviceCidrs = ['10.96.0.0/16', 'fd00:10:96::/112']
export const podCidrs = { v4: '10.244.0.0/16', v6: 'fd00:10:244::/48' }

export type Site = 'cloud' | 'edge'
export type NodeName = 'mkworker3' | 'mkedge2' | 'mkedge3'

export interface LabNode {
  name: NodeName
  site: Site
  /** On its site's LAN. */
  address: string
  gateway: string
  /** Third octet of its pod CIDR 10.244.N.0/24, and group of fd00:10:244:N::/64. */
  pods: number
}

export const nodes: readonly LabNode[] = [
  { name: 'mkworker3', site: 'cloud', address: '172.20.0.3', gateway: '172.20.0.1', pods: 1 },
  { name: 'mkedge2', site: 'edge', address: '192.168.1.2', gateway: '192.168.1.1', pods: 2 },
  { name: 'mkedge3', site: 'edge', address: '192.168.1.3', gateway: '192.168.1.1', pods: 3 },
]

/** Namespaces that are not pods: the internet, the two sites' ways to it, and the nodes. */
export const machines = ['internet', 'mkmaster1', 'edge-router', ...nodes.map((n) => n.name)] as const

export interface PodSpec {
  name: string
  node: NodeName
  /** 10.244.N.H; default: the next free one of the node. The same IP, and its IPv6, may exist at another site. */
  ip?: string
  /** Default true. */
  sidecar?: boolean
}

export interface ServiceSpec {
  name: string
  pods: string[]
  ports: number[]
  /** Last part of its clusterIPs. */
  index: number
}

export const basePods: readonly PodSpec[] = [
  { name: 'client', node: 'mkedge3' },
  { name: 'tcp-echo-edge', node: 'mkedge2' },
  { name: 'tcp-echo-cloud', node: 'mkworker3' },
]

const anyPorts = [5201, 8080, 5432, 6379, 50051]

export function baseServices(morePorts: readonly number[]): ServiceSpec[] {
  const ports = [...new Set([...anyPorts, ...morePorts])]
  return [
    { name: 'tcp-echo-edge', pods: ['tcp-echo-edge'], ports: [2701], index: 11 },
    { name: 'tcp-echo-cloud', pods: ['tcp-echo-cloud'], ports: [2701], index: 12 },
    { name: 'edge', pods: ['tcp-echo-edge'], ports, index: 21 },
    { name: 'cloud', pods: ['tcp-echo-cloud'], ports, index: 22 },
  ]
}

export function clusterIPs(index: number): [string, string] {
  return [`10.96.0.${index}`, `fd00:10:96::${index.toString(16)}`]
}

export function podIPv6(node: LabNode, host: number): string {
  return `fd00:10:244:${node.pods}::${host.toString(16)}`
}

export function nodeOf(name: string): LabNode {
  const node = nodes.find((n) => n.name === name)
  if (node === undefined) throw new Error(`no node ${name}: ${nodes.map((n) => n.name).join(', ')}`)
  return node
}

/** Kubernetes objects of a pod, as the lab writes them for the server. */
export function podManifest(pod: {
  name: string
  node: string
  uid: string
  ips: readonly string[]
  sidecar: boolean
}): object {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      name: pod.name,
      namespace: 'default',
      uid: pod.uid,
      ...(pod.sidecar ? { annotations: { 'sidecar.edgemesh.io/status': 'injected' } } : {}),
    },
    spec: { nodeName: pod.node, serviceAccountName: 'default', containers: [{ name: 'app' }] },
    status: { phase: 'Running', podIP: pod.ips[0], podIPs: pod.ips.map((ip) => ({ ip })) },
  }
}

export function serviceManifests(
  service: ServiceSpec,
  pods: readonly { name: string; node: string; uid: string; ips: readonly string[] }[],
): object[] {
  const portNames = service.ports.map((port) => ({ name: `tcp-${port}`, port, protocol: 'TCP' }))
  const metadata = { name: service.name, namespace: 'default' }
  const slices = (['IPv4', 'IPv6'] as const).map((addressType) => ({
    apiVersion: 'discovery.k8s.io/v1',
    kind: 'EndpointSlice',
    metadata: {
      name: `${service.name}-${addressType.toLowerCase()}`,
      namespace: 'default',
      labels: { 'kubernetes.io/service-name': service.name },
    },
    addressType,
    ports: portNames,
    endpoints: pods.map((pod) => ({
      addresses: pod.ips.filter((ip) => ip.includes(':') === (addressType === 'IPv6')),
      conditions: { ready: true, serving: true, terminating: false },
      nodeName: pod.node,
      targetRef: { kind: 'Pod', namespace: 'default', name: pod.name, uid: pod.uid },
    })),
  }))
  const ips = clusterIPs(service.index)
  return [
    {
      apiVersion: 'v1',
      kind: 'Service',
      metadata,
      spec: {
        type: 'ClusterIP',
        clusterIP: ips[0],
        clusterIPs: ips,
        ipFamilies: ['IPv4', 'IPv6'],
        ports: portNames,
      },
    },
    ...slices,
  ]
}
