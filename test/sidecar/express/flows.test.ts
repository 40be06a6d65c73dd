import { describe, expect, it } from 'vitest'
import { flowOf } from '../../../sidecar/express/flows.ts'
import type { Endpoint, ServiceEntry } from '../../../sidecar/shared/catalogue.ts'

const web: ServiceEntry = {
  namespace: 'default',
  name: 'web',
  kind: 'clusterIP',
  clusterIPs: ['10.96.0.1', 'fd00:10:96::1'],
  ports: [{ name: 'http', port: 80, protocol: 'TCP' }],
  affinitySeconds: 0,
  localOnly: false,
  preferClose: false,
  bypass: false,
  balancer: 'round-robin',
}
const a: Endpoint = {
  addresses: ['10.244.1.1', 'fd00::1'],
  podUid: 'a',
  ports: { http: 8080 },
  ready: true,
  serving: true,
  terminating: false,
  sidecar: false,
}
const b: Endpoint = { ...a, addresses: ['10.244.1.2'], podUid: 'b' }

/** The endpoints that the flow to an address leads to, or why there is none. */
function flowTo(address: string, endpoints: Endpoint[] | undefined, service: Partial<ServiceEntry> = {}) {
  const entry = { ...web, ...service }
  const { flow } = flowOf(
    { address, port: 80 },
    {
      self: { podUid: 'self', podIPs: ['10.244.9.9'], node: undefined, zone: undefined },
      byAddress: (asked) => (entry.clusterIPs.includes(asked) ? entry : undefined),
      endpointsOf: () => endpoints,
    },
  )
  return flow?.targets.map(
    ({ about, peer }) => `${peer ? `lanes of ${peer}:` : about.route} ${about.endpoint}`,
  )
}

describe('what the worker may carry by itself', () => {
  it.each<[string, ReturnType<typeof flowTo>, string[] | undefined]>([
    ['what is no service, as it was dialled', flowTo('192.0.2.1', []), ['plain 192.0.2.1:80']],
    [
      'endpoints without a sidecar, in the order of their turns',
      flowTo('10.96.0.1', [b, a]),
      ['plain 10.244.1.1:8080', 'plain 10.244.1.2:8080'],
    ],
    [
      'the family that was dialled where there is one',
      flowTo('fd00:10:96::1', [a, b]),
      ['plain [fd00::1]:8080', 'plain 10.244.1.2:8080'],
    ],
    [
      'the pod itself, though it has a sidecar',
      flowTo('10.96.0.1', [{ ...a, podUid: 'self', sidecar: true }]),
      ['local 10.244.1.1:8080'],
    ],
    [
      'only those that are ready',
      flowTo('10.96.0.1', [a, { ...b, ready: false }]),
      ['plain 10.244.1.1:8080'],
    ],
    [
      'by its lanes an endpoint that has a sidecar, beside one that has none',
      flowTo('10.96.0.1', [a, { ...b, sidecar: true }]),
      ['plain 10.244.1.1:8080', 'lanes of b: 10.244.1.2:8080'],
    ],
    ['nothing without endpoints', flowTo('10.96.0.1', []), undefined],
    ['nothing where they are not known', flowTo('10.96.0.1', undefined), undefined],
    ['nothing for sticky clients', flowTo('10.96.0.1', [a], { affinitySeconds: 60 }), undefined],
    [
      'nothing where open connections decide',
      flowTo('10.96.0.1', [a, b], { balancer: 'least-request' }),
      undefined,
    ],
    ['nothing to the sidecar itself', flowTo('127.0.0.1', []), undefined],
    ['nothing for a port that the service does not have', flowTo('10.96.0.1', [a], { ports: [] }), undefined],
  ])('%s', (_what, flow, expected) => {
    expect(flow).toEqual(expected)
  })
})
