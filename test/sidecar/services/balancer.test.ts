import { describe, expect, it } from 'vitest'
import { Balancer, eligible, keyOf, type Wanted } from '../../../sidecar/services/balancer.ts'
import type { Endpoint, ServiceEntry } from '../../../sidecar/shared/catalogue.ts'
import { Seeded } from '../../server/seeded.ts'

const service: ServiceEntry = {
  namespace: 'default',
  name: 'web',
  kind: 'clusterIP',
  clusterIPs: ['10.96.0.1'],
  ports: [{ name: 'http', port: 80, protocol: 'TCP' }],
  affinitySeconds: 0,
  localOnly: false,
  preferClose: false,
  bypass: false,
  balancer: 'round-robin',
}

function ep(name: string, more: Partial<Endpoint> = {}): Endpoint {
  const flags = { ready: true, serving: true, terminating: false, sidecar: true }
  return {
    addresses: [`10.244.1.${name.charCodeAt(0)}`],
    podUid: name,
    ports: { http: 8080 },
    ...flags,
    ...more,
  }
}

const wanted = (endpoints: Endpoint[], more: Partial<Wanted> = {}): Wanted => ({
  service,
  portName: 'http',
  endpoints,
  client: '10.244.3.2',
  address: '10.96.0.1',
  self: { node: 'here', zone: undefined },
  exclude: new Set(),
  ...more,
})

describe('which endpoints may serve', () => {
  const draining = { ready: false, serving: true, terminating: true }
  const down = { ready: false, serving: false }
  it.each<[string, Endpoint[], { localOnly?: boolean; zone?: string }, string[]]>([
    ['the ready ones', [ep('a'), ep('b', down), ep('c', draining)], {}, ['a']],
    [
      'where none is ready: those that still serve while they end',
      [ep('b', down), ep('c', draining)],
      {},
      ['c'],
    ],
    ['none where none serves', [ep('b', down)], {}, []],
    [
      'for a Local policy: those of this node',
      [ep('a', { node: 'here' }), ep('b', { node: 'there' }), ep('c')],
      { localOnly: true },
      ['a'],
    ],
    ['for a Local policy without one here: none', [ep('b', { node: 'there' })], { localOnly: true }, []],
    [
      'with hints on all: those for our zone',
      [ep('a', { forZones: ['x'] }), ep('b', { forZones: ['y'] })],
      { zone: 'x' },
      ['a'],
    ],
    ['with hints on some only: all', [ep('a', { forZones: ['x'] }), ep('b')], { zone: 'x' }, ['a', 'b']],
    ['with hints for others only: all', [ep('a', { forZones: ['y'] })], { zone: 'x' }, ['a']],
    ['without a zone of our own: all', [ep('a', { forZones: ['y'] })], {}, ['a']],
  ])('%s', (_title, endpoints, { localOnly = false, zone }, keys) => {
    expect(eligible({ localOnly }, endpoints, { node: 'here', zone }).map(keyOf)).toEqual(keys)
  })
})

describe('the balancer', () => {
  it('takes turns', () => {
    const balancer = new Balancer()
    const order = Array.from({ length: 6 }, () => balancer.pick(wanted([ep('b'), ep('a'), ep('c')]))?.key)
    expect(order).toEqual(['a', 'b', 'c', 'a', 'b', 'c'])
  })

  it('goes on from the turn that a connection had elsewhere, and from its own where that one is none of them', () => {
    const balancer = new Balancer()
    const pick = (turn?: string, failed: string[] = []) =>
      balancer.pick(wanted([ep('a'), ep('b'), ep('d')], { turn, exclude: new Set(failed) }))?.key
    expect([pick(), pick('d'), pick(), pick('b', ['b']), pick('c'), pick('e'), pick()]).toEqual(
      'adadabd'.split(''),
    )
  })

  it('takes turns fairly while endpoints come and go', () => {
    const random = new Seeded(5)
    const balancer = new Balancer()
    const steady = ['d', 'm', 't']
    const counts = new Map<string, number>()
    for (let i = 0; i < 3_000; i++) {
      const visitors = ['a', 'h', 'p', 'z'].filter(() => random.below(2) === 0)
      const key = balancer.pick(wanted([...steady, ...visitors].map((n) => ep(n))))?.key ?? ''
      counts.set(key, (counts.get(key) ?? 0) + 1)
    }
    const turns = steady.map((n) => counts.get(n) ?? 0)
    expect(Math.max(...turns) - Math.min(...turns)).toBeLessThanOrEqual(1)
  })

  it('gives least-request services the endpoint with the fewest open connections, equals in turn', () => {
    const balancer = new Balancer()
    const least = { service: { ...service, balancer: 'least-request' as const } }
    const next = () => {
      const key = balancer.pick(wanted([ep('a'), ep('b'), ep('c')], least))?.key ?? ''
      balancer.opened('default/web', key)
      return key
    }
    expect([next(), next(), next()].sort()).toEqual(['a', 'b', 'c'])
    balancer.closed('default/web', 'b')
    expect(next()).toBe('b')
    balancer.closed('default/web', 'c')
    balancer.closed('default/web', 'c')
    expect(next()).toBe('c')
  })

  it('keeps a client with its endpoint until its affinity ends, counted from the last use', () => {
    let now = 0
    const balancer = new Balancer(() => now)
    const sticky = { service: { ...service, affinitySeconds: 10 } }
    const pick = (client: string) => balancer.pick(wanted([ep('a'), ep('b')], { ...sticky, client }))?.key
    expect([pick('x'), pick('y'), pick('x'), pick('y')]).toEqual(['a', 'b', 'a', 'b'])
    now = 9_000
    expect(pick('x')).toBe('a')
    now = 18_000
    expect(pick('x')).toBe('a')
    now = 28_001
    expect(pick('y')).toBe('a')
  })

  it('moves a client whose endpoint is gone or has failed', () => {
    const balancer = new Balancer(() => 0)
    const sticky = { service: { ...service, affinitySeconds: 10 } }
    expect(balancer.pick(wanted([ep('a'), ep('b')], sticky))?.key).toBe('a')
    expect(balancer.pick(wanted([ep('a', { ready: false }), ep('b')], sticky))?.key).toBe('b')
    expect(balancer.pick(wanted([ep('a'), ep('b')], { ...sticky, exclude: new Set(['b']) }))?.key).toBe('a')
  })

  it('has none where all are excluded, or none has the port', () => {
    expect(new Balancer().pick(wanted([ep('a')], { exclude: new Set(['a']) }))).toBeUndefined()
    expect(new Balancer().pick(wanted([ep('a', { ports: { other: 1 } })]))).toBeUndefined()
    expect(new Balancer().pick(wanted([ep('a', { ports: { other: 1 } }), ep('b')]))?.key).toBe('b')
  })

  it('prefers the address of the family that was dialled', () => {
    const dual = [ep('a', { addresses: ['10.244.1.1', 'fd00::1'] })]
    expect(new Balancer().pick(wanted(dual))).toMatchObject({ address: '10.244.1.1', port: 8080 })
    expect(new Balancer().pick(wanted(dual, { address: 'fd00:10:96::1' }))).toMatchObject({
      address: 'fd00::1',
    })
    expect(new Balancer().pick(wanted([ep('a')], { address: 'fd00:10:96::1' }))).toMatchObject({
      address: '10.244.1.97',
    })
  })

  it('remembers a bounded number of clients', () => {
    const balancer = new Balancer(() => 0)
    const sticky = { service: { ...service, affinitySeconds: 10 } }
    expect(balancer.pick(wanted([ep('a'), ep('b')], { ...sticky, client: 'first' }))?.key).toBe('a')
    for (let i = 0; i < 10_001; i++) balancer.pick(wanted([ep('b')], { ...sticky, client: `c${i}` }))
    expect(balancer.pick(wanted([ep('b'), ep('c')], { ...sticky, client: 'c10000' }))?.key).toBe('b')
    expect(balancer.pick(wanted([ep('a'), ep('c')], { ...sticky, client: 'first' }))?.key).toBe('c')
  })
})
