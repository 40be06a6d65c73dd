import type { NameSettings, NameView } from '../../../sidecar/dns/answer.ts'
import type { Endpoint, ServiceEntry } from '../../../sidecar/shared/catalogue.ts'

const plain = {
  affinitySeconds: 0,
  localOnly: false,
  preferClose: false,
  bypass: false,
  balancer: 'round-robin',
} as const
const http = { name: 'http', port: 80, protocol: 'TCP' } as const
const dnsPort = { name: 'dns', port: 53, protocol: 'UDP' } as const

export const services: ServiceEntry[] = [
  {
    namespace: 'default',
    name: 'web',
    kind: 'clusterIP',
    clusterIPs: ['10.96.0.1'],
    ports: [http, dnsPort],
    ...plain,
  },
  {
    namespace: 'shop',
    name: 'db',
    kind: 'clusterIP',
    clusterIPs: ['10.96.0.2', 'fd00:10:96::2'],
    ports: [http],
    ...plain,
  },
  {
    namespace: 'shop',
    name: 'out',
    kind: 'externalName',
    clusterIPs: [],
    externalName: 'internet.test',
    ports: [],
    ...plain,
  },
  { namespace: 'shop', name: 'set', kind: 'headless', clusterIPs: [], ports: [http], ...plain },
  {
    namespace: 'shop',
    name: 'left-alone',
    kind: 'clusterIP',
    clusterIPs: ['10.96.0.3'],
    ports: [http],
    ...plain,
    bypass: true,
  },
]

const endpoint = { ready: true, serving: true, terminating: false, ports: { http: 8080 }, sidecar: true }
export const setEndpoints: Endpoint[] = [
  { ...endpoint, addresses: ['10.244.1.5', 'fd00::5'], podUid: 'a', hostname: 'set-0' },
  { ...endpoint, addresses: ['10.244.1.6'], podUid: 'b' },
  { ...endpoint, addresses: ['10.244.1.7'], podUid: 'c', ready: false },
]

export const settings: NameSettings = { namespace: 'default', clusterDomain: 'cluster.local' }

export function viewOf(loaded = true): NameView & { usedIds: string[]; version: number } {
  const usedIds: string[] = []
  return {
    loaded,
    version: 1,
    usedIds,
    byName: (namespace, name) => services.find((s) => loaded && s.namespace === namespace && s.name === name),
    byAddress: (address) => services.find((s) => s.clusterIPs.includes(address)),
    endpoints: async () => setEndpoints,
    used: (id) => usedIds.push(id),
  }
}
