/** The lab's network as data: who is where, with which addresses. Pure; network.ts acts on it. */

import type { NatKind } from './nat.ts'

export const serverAddress = '203.0.113.10'
export const dnsAddress = '203.0.113.53'
export const serviceCidrs = ['10.96.0.0/16', 'fd00:10:96::/112']
export const podCidrs = { v4: '10.244.0.0/16', v6: 'fd00:10:244::/48' }

/** A site that is not the cloud: a LAN of nodes behind a router. */
export interface EdgeSite {
  name: string
  router: string
  /** Of its router, on the internet. */
  wan: string
  /** First three octets of its LAN. */
  lan: string
  nat: NatKind
}

export interface LabNode {
  name: string
  site: string
  /** On its site's LAN. */
  address: string
  gateway: string
  /** Third octet of its pod CIDR 10.244.N.0/24, and group of fd00:10:244:N::/64. */
  pods: number
}

/** Everything that stands before the first process starts. */
export interface Layout {
  sites: readonly EdgeSite[]
  nodes: readonly LabNode[]
  /** Namespaces that are not pods: the internet, the sites' ways to it, and the nodes. */
  machines: readonly string[]
  pods: readonly PodSpec[]
  services: readonly ServiceSpec[]
}

const cloudNode = { name: 'mkworker3', site: 'cloud', address: '172.20.0.3', gateway: '172.20.0.1', pods: 1 }
const edgeNodes: readonly LabNode[] = [
  { name: 'mkedge2', site: 'edge', address: '192.168.1.2', gateway: '192.168.1.1', pods: 2 },
  { name: 'mkedge3', site: 'edge', address: '192.168.1.3', gateway: '192.168.1.1', pods: 3 },
]
const edgeSite: EdgeSite = {
  name: 'edge',
  router: 'edge-router',
  wan: '203.0.113.20',
  lan: '192.168.1',
  nat: 'port',
}

export interface PodSpec {
  name: string
  node: string
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

const cloudPod: PodSpec = { name: 'tcp-echo-cloud', node: 'mkworker3' }
const basePods: readonly PodSpec[] = [
  { name: 'client', node: 'mkedge3' },
  { name: 'tcp-echo-edge', node: 'mkedge2' },
  cloudPod,
]

const anyPorts = [5201, 8080, 5432, 6379, 50051]

/** The lab that most tests use: the cloud, and an edge site of two nodes behind a NAT. */
export function standardLayout(morePorts: readonly number[] = []): Layout {
  return withServices([edgeSite], [cloudNode, ...edgeNodes], basePods, morePorts, [
    ['edge', 'tcp-echo-edge', 11, 21],
    ['cloud', 'tcp-echo-cloud', 12, 22],
  ])
}

export interface NatSite {
  name: string
  nat: NatKind
}

/** The cloud, and sites of one node with one pod, each behind a NAT of its own; pod and service are named as the site. */
export function natLayout(natSites: readonly NatSite[], morePorts: readonly number[] = []): Layout {
  const sites = natSites.map(({ name, nat }, i) => {
    return { name, nat, router: `router-${name}`, wan: `203.0.113.${31 + i}`, lan: `192.168.${11 + i}` }
  })
  const nodes = sites.map(({ name, lan }, i) => {
    return { name: `mkedge-${name}`, site: name, address: `${lan}.2`, gateway: `${lan}.1`, pods: 11 + i }
  })
  const pods = nodes.map((node) => ({ name: node.site, node: node.name }))
  return withServices(sites, [cloudNode, ...nodes], [...pods, cloudPod], morePorts, [
    ['cloud', 'tcp-echo-cloud', 12, 22],
    ...pods.map(({ name }, i): Served => [name, name, 31 + i, 51 + i]),
  ])
}

/** A name, the pod behind it, and the last parts of the clusterIPs of `tcp-echo-NAME` and `NAME`. */
type Served = [name: string, pod: string, echo: number, any: number]

function withServices(
  sites: readonly EdgeSite[],
  nodes: readonly LabNode[],
  pods: readonly PodSpec[],
  morePorts: readonly number[],
  served: readonly Served[],
): Layout {
  const ports = [...new Set([...anyPorts, ...morePorts])]
  const routers = ['mkmaster1', ...sites.map((s) => s.router)]
  return {
    sites,
    nodes,
    pods,
    machines: ['internet', ...routers, ...nodes.map((n) => n.name)],
    services: [
      ...served.map(([name, pod, index]) => ({
        name: `tcp-echo-${name}`,
        pods: [pod],
        ports: [2701],
        index,
      })),
      ...served.map(([name, pod, , index]) => ({ name, pods: [pod], ports, index })),
    ],
  }
}

export function clusterIPs(index: number): [string, string] {
  return [`10.96.0.${index}`, `fd00:10:96::${index.toString(16)}`]
}

export function podIPv6(node: LabNode, host: number): string {
  return `fd00:10:244:${node.pods}::${host.toString(16)}`
}

export function nodeOf(layout: Layout, name: string): LabNode {
  const node = layout.nodes.find((n) => n.name === name)
  if (node === undefined) throw new Error(`no node ${name}: ${layout.nodes.map((n) => n.name).join(', ')}`)
  return node
}

/** The first node of a site: what its router calls the host. */
export function hostOf(layout: Layout, site: EdgeSite): LabNode {
  const node = layout.nodes.find((n) => n.site === site.name)
  if (node === undefined) throw new Error(`no node in site ${site.name}`)
  return node
}

/** Kubernetes objects of a pod, as the lab writes them for the server. */
export function podManifest(pod: {
  name: string
  node: string
  uid: string
  ips: readonly string[]
  sidecar: boolean
  hostIP?: string
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
    status: {
      phase: 'Running',
      ...(pod.hostIP === undefined ? {} : { hostIP: pod.hostIP, hostIPs: [{ ip: pod.hostIP }] }),
      podIP: pod.ips[0],
      podIPs: pod.ips.map((ip) => ({ ip })),
    },
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
