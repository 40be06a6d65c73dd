import { describe, expect, it } from 'vitest'
import { type NodeLike, publicAddress, type ServiceLike } from '../../../server/mesh/public-address.ts'
import { rangeIn } from '../../../server/mesh/service-cidrs.ts'
import { readReview } from '../../../server/token-verifier/kubernetes.ts'
import { fromConfigData, toConfigData } from '../../../sidecar/shared/mesh-config.ts'

describe('the public address', () => {
  const node = (name: string, ...external: string[]): NodeLike => ({
    metadata: { name },
    status: {
      addresses: [
        { type: 'InternalIP', address: '10.0.0.1' },
        ...external.map((address) => ({ type: 'ExternalIP', address })),
      ],
    },
  })
  const service = (type: string, ingress: object[] = []): ServiceLike => ({
    spec: { type, ports: [{ name: 'mesh', port: 20_004, nodePort: 30_004 }] },
    status: { loadBalancer: { ingress } },
  })

  it.each([
    ['configured', ['a:1'], service('ClusterIP'), [], undefined, ['a:1']],
    [
      'load balancer by IP',
      [],
      service('LoadBalancer', [{ ip: '203.0.113.1' }]),
      [],
      undefined,
      ['203.0.113.1:20004'],
    ],
    [
      'load balancer by name',
      [],
      service('LoadBalancer', [{ hostname: 'lb.example' }]),
      [],
      undefined,
      ['lb.example:20004'],
    ],
    ['load balancer not there yet', [], service('LoadBalancer'), [], undefined, []],
    [
      'node port',
      [],
      service('NodePort'),
      [node('b', '203.0.113.2'), node('a', '203.0.113.1')],
      undefined,
      ['203.0.113.1:30004', '203.0.113.2:30004'],
    ],
    [
      'node port, IPv6',
      [],
      service('NodePort'),
      [node('a', '2001:db8::1')],
      undefined,
      ['[2001:db8::1]:30004'],
    ],
    ['node port without external addresses', [], service('NodePort'), [node('a')], undefined, []],
    [
      'host network',
      [],
      service('ClusterIP'),
      [node('a', '203.0.113.1'), node('b', '203.0.113.2')],
      { port: 20_004, nodes: ['b'] },
      ['203.0.113.2:20004'],
    ],
    ['nothing', [], undefined, [], undefined, []],
  ])('%s', (_name, configured, of, nodes, host, addresses) => {
    const found = publicAddress(configured, of, nodes, host)
    expect(found.addresses).toEqual(addresses)
    if (addresses.length === 0) expect(found.why).toContain('set EDGEMESH_PUBLIC_ADDRESS')
  })
})

it('finds the service range in a refusal', () => {
  const refusal = 'provided IP is not in the valid range. The range of valid IPs is 10.96.0.0/12'
  expect(rangeIn(refusal)).toBe('10.96.0.0/12')
  expect(rangeIn('forbidden')).toBeUndefined()
})

describe('a TokenReview', () => {
  const good = {
    authenticated: true,
    audiences: ['edgemesh'],
    user: {
      username: 'system:serviceaccount:shop:cart',
      extra: {
        'authentication.kubernetes.io/pod-name': ['cart-1'],
        'authentication.kubernetes.io/pod-uid': ['11111111-2222-3333-4444-555555555555'],
      },
    },
  }

  it('says who the pod is', () => {
    expect(readReview({ status: good })).toEqual({
      namespace: 'shop',
      serviceAccount: 'cart',
      podName: 'cart-1',
      podUid: '11111111-2222-3333-4444-555555555555',
    })
  })

  it.each([
    ['nothing', undefined],
    ['a no', { ...good, authenticated: false }],
    ['no word about it', { ...good, authenticated: undefined }],
    ['another audience', { ...good, audiences: ['https://kubernetes.default.svc'] }],
    ['no audience', { ...good, audiences: undefined }],
    ['a user', { ...good, user: { ...good.user, username: 'admin' } }],
    [
      'a service account of a strange name',
      { ...good, user: { ...good.user, username: 'system:serviceaccount:a:b:c' } },
    ],
    ['no pod', { ...good, user: { ...good.user, extra: {} } }],
    [
      'a strange uid',
      {
        ...good,
        user: {
          ...good.user,
          extra: { ...good.user.extra, 'authentication.kubernetes.io/pod-uid': ['../x'] },
        },
      },
    ],
  ])('with %s is refused', (_name, status) => {
    expect(() => readReview({ status } as never)).toThrow(
      expect.objectContaining({ code: 'unauthenticated' }),
    )
  })
})

it('keeps the mesh configuration as it is through a ConfigMap', () => {
  const config = {
    servers: ['a:1', 'b:2'],
    trustBundle: 'PEM',
    trustDomain: 'cluster.local',
    clusterDomain: 'cluster.local',
    serviceCidrs: [],
  }
  expect(fromConfigData(toConfigData(config))).toEqual(config)
  expect(() => fromConfigData({ servers: 'a:1' })).toThrow(/"(serviceCidrs|ca.crt)" is missing/)
})
