import { describe, expect, it } from 'vitest'
import { decideDestination } from '../../../sidecar/services/destination.ts'
import type { ServiceEntry } from '../../../sidecar/shared/catalogue.ts'

const web: ServiceEntry = {
  namespace: 'default',
  name: 'web',
  kind: 'clusterIP',
  clusterIPs: ['10.96.0.1'],
  ports: [
    { name: 'http', port: 80, protocol: 'TCP' },
    { name: 'dns', port: 53, protocol: 'UDP' },
  ],
  affinitySeconds: 0,
  localOnly: false,
  preferClose: false,
  bypass: false,
  balancer: 'round-robin',
}
const services: Record<string, ServiceEntry> = { '10.96.0.1': web, '10.96.0.2': { ...web, bypass: true } }
const self = { podIPs: ['10.244.1.2'], ownPorts: [40_001] }
const decide = (address: string, port: number) =>
  decideDestination({ address, port }, (a) => services[a], self)

describe('what a captured connection is for', () => {
  it.each([
    ['a port of a service', '10.96.0.1', 80, { kind: 'service', service: web, portName: 'http' }],
    ['an unknown address is passed through', '10.96.0.9', 80, { kind: 'passthrough' }],
    ['a service that opted out is passed through', '10.96.0.2', 80, { kind: 'passthrough' }],
    ['an unknown port of a service is reset', '10.96.0.1', 81, { kind: 'reset' }],
    ['a UDP port is no TCP port', '10.96.0.1', 53, { kind: 'reset' }],
    ['the interceptor itself is refused', '127.0.0.1', 40_001, { kind: 'reset' }],
    ['the interceptor by IPv6 is refused', '::1', 40_001, { kind: 'reset' }],
    ['the interceptor by the pod IP is refused', '10.244.1.2', 40_001, { kind: 'reset' }],
  ])('%s', (_title, address, port, decision) => {
    expect(decide(address, port)).toMatchObject(decision)
  })
})
