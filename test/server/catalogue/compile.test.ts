import { describe, expect, it } from 'vitest'
import { canonicalIP, compile } from '../../../server/catalogue/compile.ts'
import { declaredPorts } from '../../../server/catalogue/source.ts'
import { endpoint, serviceEntry } from '../../../sidecar/shared/catalogue.ts'
import { Seeded } from '../seeded.ts'

const service = (spec: object, metadata: object = {}) => ({
  kind: 'Service',
  metadata: { name: 'web', ...metadata },
  spec,
})
const slice = (more: object, name = 'web') => ({
  kind: 'EndpointSlice',
  metadata: { name: `${name}-x`, labels: { 'kubernetes.io/service-name': name } },
  addressType: 'IPv4',
  ports: [{ name: 'http', port: 8080 }],
  ...more,
})
const pod = (uid: string, more: { metadata?: object; spec?: object; status?: object } = {}) => ({
  kind: 'Pod',
  metadata: { name: uid, uid, ...more.metadata },
  spec: { containers: [], ...more.spec },
  status: { phase: 'Running', ...more.status },
})
const lifetime = (text?: string) =>
  text === undefined ? {} : { annotations: { 'sidecar.edgemesh.io/leaf-lifetime': text } }
const ref = (uid: string) => ({ kind: 'Pod', name: uid, uid })

const of = (...objects: unknown[]) => compile(objects.map((object, i) => ({ object, origin: `file ${i}` })))
const entryOf = (...objects: unknown[]) => of(...objects).state.services.get('default/web')
const endpointsOf = (...objects: unknown[]) => of(...objects).state.endpoints.get('default/web')

describe('a Service', () => {
  const ip = { clusterIP: '10.96.0.1' }
  it.each<[string, object, object]>([
    ['has its clusterIP', ip, { kind: 'clusterIP', clusterIPs: ['10.96.0.1'] }],
    [
      'has both of its clusterIPs, canonical',
      { ...ip, clusterIPs: ['10.96.0.1', 'FD00:0:0::1'] },
      { clusterIPs: ['10.96.0.1', 'fd00::1'] },
    ],
    ['is headless with None', { clusterIP: 'None' }, { kind: 'headless', clusterIPs: [] }],
    [
      'may be an ExternalName',
      { type: 'ExternalName', externalName: 'a.b' },
      { kind: 'externalName', externalName: 'a.b', clusterIPs: [] },
    ],
    [
      'has ports, TCP unless told',
      { ...ip, ports: [{ port: 80 }, { name: 'd', port: 53, protocol: 'UDP' }] },
      {
        ports: [
          { name: '', port: 80, protocol: 'TCP' },
          { name: 'd', port: 53, protocol: 'UDP' },
        ],
      },
    ],
    ['has no affinity unless told', ip, { affinitySeconds: 0 }],
    [
      'has three hours of affinity unless told',
      { ...ip, sessionAffinity: 'ClientIP' },
      { affinitySeconds: 10_800 },
    ],
    [
      'has the affinity that it asks for',
      { ...ip, sessionAffinity: 'ClientIP', sessionAffinityConfig: { clientIP: { timeoutSeconds: 7 } } },
      { affinitySeconds: 7 },
    ],
    ['may be for its own node only', { ...ip, internalTrafficPolicy: 'Local' }, { localOnly: true }],
    ['may prefer near endpoints', { ...ip, trafficDistribution: 'PreferClose' }, { preferClose: true }],
  ])('%s', (_title, spec, entry) => {
    expect(entryOf(service(spec))).toMatchObject(entry)
  })

  it('may opt out by its label', () => {
    expect(entryOf(service(ip, { labels: { noproxy: 'edgemesh' } }))).toMatchObject({ bypass: true })
    expect(entryOf(service(ip, { labels: { noproxy: 'other' } }))).toMatchObject({ bypass: false })
  })

  it('may choose its balancer; a bad choice is told, and the default used', () => {
    const annotated = (value: string) =>
      service(ip, { annotations: { 'sidecar.edgemesh.io/balancer': value } })
    expect(entryOf(annotated('least-request'))).toMatchObject({ balancer: 'least-request' })
    const { state, diagnostics } = of(annotated('fastest'))
    expect(state.services.get('default/web')).toMatchObject({ balancer: 'round-robin' })
    expect(diagnostics[0]).toContain('annotation sidecar.edgemesh.io/balancer is "fastest"')
  })

  it.each([
    [{ clusterIP: '10.96.0' }],
    [{ ...ip, ports: [{ port: 0 }] }],
    [{ ...ip, ports: [{ port: 'http' }] }],
    [{ ...ip, ports: 7 }],
  ])('is left out with a diagnostic when it is %j', (spec) => {
    const { state, diagnostics } = of(service(spec), service(ip, { name: 'good' }))
    expect([...state.services.keys()]).toEqual(['default/good'])
    expect(diagnostics).toHaveLength(1)
    expect(diagnostics[0]).toMatch(/^file 0: left out: /)
  })
})

describe('an EndpointSlice', () => {
  it.each([
    [undefined, { ready: true, serving: true, terminating: false }],
    [{ ready: false }, { ready: false, serving: false, terminating: false }],
    [
      { ready: false, serving: true, terminating: true },
      { ready: false, serving: true, terminating: true },
    ],
  ])('with conditions %j means what Kubernetes says', (conditions, meaning) => {
    expect(endpointsOf(slice({ endpoints: [{ addresses: ['10.244.1.1'], conditions }] }))).toMatchObject([
      meaning,
    ])
  })

  it('keeps node, zone, hostname and hints, and the pod’s uid', () => {
    const raw = {
      addresses: ['10.244.1.1'],
      nodeName: 'n',
      zone: 'z',
      hostname: 'h',
      hints: { forZones: [{ name: 'z' }] },
      targetRef: ref('a'),
    }
    expect(endpointsOf(slice({ endpoints: [raw] }))).toMatchObject([
      { node: 'n', zone: 'z', hostname: 'h', forZones: ['z'], podUid: 'a', ports: { http: 8080 } },
    ])
  })

  it('merges with others of its service, and the two families of one pod become one endpoint', () => {
    const found = endpointsOf(
      slice({ endpoints: [{ addresses: ['10.244.1.1'], targetRef: ref('a') }] }),
      slice({ addressType: 'IPv6', endpoints: [{ addresses: ['fd00::0001'], targetRef: ref('a') }] }),
      slice({
        endpoints: [{ addresses: ['10.244.1.2'], targetRef: ref('b') }, { addresses: ['192.0.2.1'] }],
      }),
    )
    expect(found?.map((e) => e.addresses)).toEqual([['10.244.1.1', 'fd00::1'], ['10.244.1.2'], ['192.0.2.1']])
    expect(found?.[2]).not.toHaveProperty('podUid')
  })

  it('knows which pods have a sidecar, and never trusts an endpoint without its pod', () => {
    const injected = pod('a', { metadata: { annotations: { 'sidecar.edgemesh.io/status': 'injected' } } })
    const endpoints = ['a', 'b'].map((uid, i) => ({ addresses: [`10.244.1.${i}`], targetRef: ref(uid) }))
    expect(endpointsOf(injected, pod('b'), slice({ endpoints }))?.map((e) => e.sidecar)).toEqual([
      true,
      false,
    ])
  })

  it('of names is not for us, and one without its label is told', () => {
    expect(endpointsOf(slice({ addressType: 'FQDN', endpoints: [{ addresses: ['a.b'] }] }))).toBeUndefined()
    expect(of({ ...slice({}), metadata: { name: 'x' } }).diagnostics[0]).toContain(
      'no label kubernetes.io/service-name',
    )
  })
})

describe('a Pod', () => {
  it('has its identity, its addresses and its TCP ports, with those of native sidecars', () => {
    const spec = {
      serviceAccountName: 'robot',
      nodeName: 'n',
      containers: [{ ports: [{ containerPort: 80 }, { containerPort: 53, protocol: 'UDP' }] }],
      initContainers: [
        { ports: [{ containerPort: 1 }] },
        { restartPolicy: 'Always', ports: [{ containerPort: 81 }] },
      ],
    }
    const { state } = of(
      pod('a', {
        spec,
        status: {
          podIP: '10.244.1.1',
          podIPs: [{ ip: '10.244.1.1' }, { ip: 'FD00::1' }],
          hostIP: '192.168.1.2',
        },
      }),
    )
    expect(state.pods.get('a')).toEqual({
      uid: 'a',
      namespace: 'default',
      name: 'a',
      serviceAccount: 'robot',
      node: 'n',
      ips: ['10.244.1.1', 'fd00::1'],
      hostIPs: ['192.168.1.2'],
      containerPorts: [80, 81],
      sidecar: false,
      finished: false,
    })
  })

  it.each<[string, string | undefined, string | undefined, number | undefined, number]>([
    ['none', undefined, undefined, undefined, 0],
    ['its own', '7d', undefined, 604_800_000, 0],
    ["its namespace's", undefined, '30d', 2_592_000_000, 0],
    ['its own before that of its namespace', '10m', '30d', 600_000, 0],
    ["its namespace's, where its own is wrong, with a diagnostic", '1y', '30d', 2_592_000_000, 1],
    ['none, where that of its namespace is wrong', undefined, '9m', undefined, 1],
  ])('asks for a leaf lifetime: %s', (_title, own, ofNamespace, ms, problems) => {
    const { state, diagnostics } = of(
      pod('a', { metadata: { namespace: 'shop', ...lifetime(own) } }),
      { kind: 'Namespace', metadata: { name: 'shop', ...lifetime(ofNamespace) } },
      { kind: 'Namespace', metadata: { name: 'other', ...lifetime('40d') } },
    )
    expect(state.pods.get('a')?.leafLifetimeMs).toBe(ms)
    expect(diagnostics).toHaveLength(problems)
  })

  it.each([
    ['Succeeded', true],
    ['Failed', true],
    ['Pending', false],
  ])('in phase %s: finished %s', (phase, finished) => {
    expect(of(pod('a', { status: { phase } })).state.pods.get('a')).toMatchObject({ finished })
  })

  it('declares its containerPorts and what services target on it', () => {
    const { state } = of(
      pod('a', { spec: { containers: [{ ports: [{ containerPort: 9090 }] }] } }),
      slice({ endpoints: [{ addresses: ['10.244.1.1'], targetRef: ref('a') }] }),
      slice(
        {
          ports: [{ name: 'other', port: 70 }],
          endpoints: [{ addresses: ['10.244.1.1'], targetRef: ref('a') }],
        },
        'second',
      ),
    )
    expect(declaredPorts(state, 'a')).toEqual([70, 8080, 9090])
    expect(declaredPorts(state, 'nobody')).toEqual([])
  })

  it('without uid is left out', () => {
    expect(of({ kind: 'Pod', metadata: { name: 'x' } }).diagnostics[0]).toContain(
      'needs metadata.name and metadata.uid',
    )
  })
})

describe('anything at all', () => {
  const good = [
    service({
      clusterIP: '10.96.0.1',
      clusterIPs: ['10.96.0.1'],
      ports: [{ name: 'http', port: 80, protocol: 'TCP' }],
    }),
    slice({
      endpoints: [
        {
          addresses: ['10.244.1.1'],
          conditions: { ready: true },
          targetRef: ref('a'),
          hints: { forZones: [{ name: 'z' }] },
        },
      ],
    }),
    pod('a', { spec: { containers: [{ ports: [{ containerPort: 80 }] }] } }),
  ]
  const junk = [null, 7, 'x', [], {}, [null], true, -1, 'None', { name: 7 }, '__proto__']

  /** Replaces one value somewhere inside. */
  function mutate(value: unknown, random: Seeded): unknown {
    if (typeof value !== 'object' || value === null || random.below(4) === 0) return random.pick(junk)
    const keys = Object.keys(value)
    if (keys.length === 0) return random.pick(junk)
    const key = random.pick(keys)
    const copy = (Array.isArray(value) ? [...value] : { ...value }) as Record<string, unknown>
    copy[key] = mutate(copy[key], random)
    return copy
  }

  it('never throws, and what comes out is what sidecars accept (3,000 seeded mutations)', () => {
    const random = new Seeded(7)
    for (let i = 0; i < 3_000; i++) {
      const objects = good.map((o, k) => (i % 3 === k || random.below(3) === 0 ? mutate(o, random) : o))
      const { state } = of(...objects)
      for (const entry of state.services.values()) expect(() => serviceEntry(entry, '')).not.toThrow()
      for (const list of state.endpoints.values())
        for (const e of list) expect(() => endpoint(e, '')).not.toThrow()
    }
  })

  it('keeps what did not change', () => {
    const first = compile(good.map((object) => ({ object, origin: '' }))).state
    const same = compile(
      structuredClone(good).map((object) => ({ object, origin: '' })),
      first,
    ).state
    expect([same.services, same.endpoints, same.pods]).toEqual([first.services, first.endpoints, first.pods])
    expect(same.services).toBe(first.services)
    expect(same.endpoints).toBe(first.endpoints)
    const other = [...good, service({ clusterIP: '10.96.0.2' }, { name: 'new' })].map((object) => ({
      object,
      origin: '',
    }))
    const next = compile(other, first).state
    expect(next.services.get('default/web')).toBe(first.services.get('default/web'))
    expect(next.services.size).toBe(2)
    expect(next.pods).toBe(first.pods)
  })

  it('is looked at once only, unless what it depends on is another', () => {
    let looks = 0
    const counted = <T extends object>(object: T, field: string, value: unknown): T =>
      Object.defineProperty(object, field, {
        get: () => {
          looks++
          return value
        },
      })
    const web = counted(service({}), 'spec', { clusterIP: '10.96.0.1' })
    const a = counted(pod('a', { metadata: { namespace: 'shop', ...lifetime('1y') } }), 'spec', {})
    const end = counted({ targetRef: ref('a') }, 'addresses', ['10.244.1.1'])
    const all = [web, a, slice({ endpoints: [end] }), pod('b')]
    const first = of(...all)
    expect(first.diagnostics).toHaveLength(1)
    const before = looks
    expect(of(...all)).toEqual(first)
    expect(looks).toBe(before)
    const namespace = { kind: 'Namespace', metadata: { name: 'shop', ...lifetime('30d') } }
    expect(of(...all, namespace).state.pods.get('a')?.leafLifetimeMs).toBe(2_592_000_000)
    const injected = pod('a', { metadata: { annotations: { 'sidecar.edgemesh.io/status': 'injected' } } })
    expect(of(...all, injected).state.endpoints.get('default/web')).toMatchObject([{ sidecar: true }])
    expect(of(...all)).toEqual(first)
  })

  it('spells each address in one way', () => {
    expect(['10.0.0.1', 'FD00:0:0:0::1', '::ffff:1.2.3.4'].map(canonicalIP)).toEqual([
      '10.0.0.1',
      'fd00::1',
      '::ffff:102:304',
    ])
  })
})
