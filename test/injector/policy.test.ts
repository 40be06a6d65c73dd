import { describe, expect, it } from 'vitest'
import { admit, patch, readReview } from '../../injector/admission.ts'
import { readAnnotations } from '../../injector/annotations.ts'
import { inject, uninject } from '../../injector/inject.ts'
import type { MeshSettings } from '../../injector/mesh-settings.ts'
import { hasNativeSidecars } from '../../injector/mesh-source.ts'
import type { Pod } from '../../injector/pod.ts'
import { decide } from '../../injector/policy.ts'

const mesh: MeshSettings = {
  image: 'edgemesh/edgemesh-sidecar:test',
  servers: ['203.0.113.7:20004'],
  trustBundle: '-----BEGIN CERTIFICATE-----\n',
  trustDomain: 'cluster.local',
  clusterDomain: 'cluster.local',
  serviceCidrs: ['10.96.0.0/12'],
  ignoredServiceIps: ['10.96.0.9'],
  nativeSidecar: true,
  ownNamespace: 'edgemesh-system',
}

function pod(spec: object = {}, metadata: object = {}): Pod {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'p', ...metadata },
    spec: { containers: [{ name: 'app', image: 'app' }], ...spec },
  }
}

const reasonOf = (
  subject: Pod,
  namespace = 'shop',
  labels: Record<string, string> = { 'edgemesh-injection': 'enabled' },
  of = mesh,
) => {
  const decision = decide({ pod: subject, namespace, namespaceLabels: labels }, of)
  return decision.inject ? 'inject' : decision.reason
}

describe('the policy', () => {
  const own = (value: string) => pod({}, { labels: { 'sidecar.edgemesh.io/inject': value } })
  it.each([
    ['enabled', undefined, 'inject'],
    ['enabled', 'true', 'inject'],
    ['enabled', 'false', 'opted-out'],
    ['enabled', 'yes', 'unknown-label'],
    ['disabled', undefined, 'opted-out'],
    ['disabled', 'true', 'inject'],
    ['disabled', 'false', 'opted-out'],
    ['disabled', 'yes', 'unknown-label'],
    ['on', undefined, 'unknown-label'],
    ['on', 'true', 'inject'],
    ['on', 'false', 'opted-out'],
    [undefined, undefined, 'not-asked'],
    [undefined, 'true', 'inject'],
    [undefined, 'false', 'opted-out'],
    [undefined, 'True', 'unknown-label'],
  ])('namespace %s, pod %s: %s', (namespace, label, reason) => {
    const labels: Record<string, string> = namespace === undefined ? {} : { 'edgemesh-injection': namespace }
    expect(reasonOf(label === undefined ? pod() : own(label), 'shop', labels)).toBe(reason)
  })

  it.each([
    ['host network', pod({ hostNetwork: true }), 'host-network'],
    ['Windows by os', pod({ os: { name: 'windows' } }), 'windows'],
    ['Windows by selector', pod({ nodeSelector: { 'kubernetes.io/os': 'windows' } }), 'windows'],
    ['Linux by os', pod({ os: { name: 'linux' } }), 'inject'],
    ['a mirror pod', pod({}, { annotations: { 'kubernetes.io/config.mirror': 'x' } }), 'mirror-pod'],
    ['a pod that runs as 1337', pod({ securityContext: { runAsUser: 1337 } }), 'uid-conflict'],
    [
      'a container that runs as 1337',
      pod({ containers: [{ name: 'c', securityContext: { runAsUser: 1337 } }] }),
      'uid-conflict',
    ],
    [
      'an init container that runs as 1337',
      pod({ initContainers: [{ name: 'i', securityContext: { runAsUser: 1337 } }] }),
      'uid-conflict',
    ],
    [
      'a container that overrides 1337 of the pod',
      pod({
        securityContext: { runAsUser: 1337 },
        containers: [{ name: 'c', securityContext: { runAsUser: 1000 } }],
      }),
      'inject',
    ],
    [
      'a port of ours',
      pod({ containers: [{ name: 'c', ports: [{ containerPort: 40001 }] }] }),
      'port-conflict',
    ],
    ['a container of our name', pod({ containers: [{ name: 'edgemesh-sidecar' }] }), 'name-conflict'],
    ['a Job', pod({ restartPolicy: 'Never' }), 'inject'],
  ])('%s', (_name, subject, reason) => {
    expect(reasonOf(subject)).toBe(reason)
  })

  it.each(['kube-system', 'kube-public', 'kube-node-lease', 'edgemesh-system'])(
    'never injects %s',
    (namespace) => {
      expect(reasonOf(pod(), namespace)).toBe('system-namespace')
    },
  )

  it('injects no Job and no one-shot pod where there are no native sidecars', () => {
    const classic = { ...mesh, nativeSidecar: false }
    expect(reasonOf(pod({ restartPolicy: 'OnFailure' }), 'shop', undefined, classic)).toBe('classic-job')
    expect(reasonOf(pod({ restartPolicy: 'Always' }), 'shop', undefined, classic)).toBe('inject')
  })

  it('says what is missing while the mesh is not configured', () => {
    expect(reasonOf(pod(), 'shop', undefined, { ...mesh, servers: [] })).toBe('not-configured')
    expect(reasonOf(pod(), 'shop', undefined, { ...mesh, serviceCidrs: [] })).toBe('not-configured')
  })
})

describe('annotations', () => {
  it.each([
    ['cpu-request', '100m', undefined],
    ['cpu-request', '0', 'must be an amount of CPU'],
    ['memory-limit', '1Gi', undefined],
    ['memory-limit', '1 GB', 'must be an amount of memory'],
    ['log-level', 'debug', undefined],
    ['log-level', 'loud', 'must be one of'],
    ['drain-seconds', '0', undefined],
    ['drain-seconds', '-1', 'must be 0 to 3600'],
    ['exclude-cidrs', '10.0.0.0/8, fd00::/8', undefined],
    ['exclude-cidrs', '10.1.2.3/8', 'must be CIDRs'],
    ['exclude-cidrs', '10.0.0.0/33', 'must be CIDRs'],
    ['exclude-ports', '25,465', undefined],
    ['exclude-ports', '0', 'must be port numbers'],
    ['upstream-dns', '9.9.9.9', undefined],
    ['upstream-dns', 'dns.example', 'must be IP addresses'],
    ['service-cidrs', '10.0.0.0/16', undefined],
    ['image', 'registry.example:5000/edgemesh:1', undefined],
    ['image', 'two words', 'must be the name of an image'],
    ['leaf-lifetime', '7d', undefined],
    ['leaf-lifetime', '9m', 'must be a time from 10m to 90d'],
    ['leaf-lifetime', 'long', 'must be a time from 10m to 90d'],
    ['offline-grace', '72h', undefined],
    ['offline-grace', '0s', undefined],
    ['offline-grace', '91d', 'must be a time up to 90d'],
    ['cpu-reqest', '100m', 'did you mean sidecar.edgemesh.io/cpu-request?'],
    ['constructor', 'x', 'is not known'],
  ])('%s: %s', (name, text, warning) => {
    const { warnings } = readAnnotations({ [`sidecar.edgemesh.io/${name}`]: text })
    if (warning === undefined) return expect(warnings).toEqual([])
    expect(warnings).toHaveLength(1)
    expect(warnings[0]).toContain(warning)
    expect(warnings[0]).toContain(`sidecar.edgemesh.io/${name}`)
  })

  it('leaves the annotations of others alone', () => {
    expect(readAnnotations({ 'example.com/cpu-request': '?' }).warnings).toEqual([])
  })
})

describe('annotations of a namespace', () => {
  const prefix = 'sidecar.edgemesh.io/'
  const subject = (own: Record<string, string>, ofNamespace: Record<string, string>) => ({
    pod: { metadata: { name: 'a', annotations: own }, spec: { containers: [{ name: 'app' }] } },
    namespace: 'shop',
    namespaceLabels: { 'edgemesh-injection': 'enabled' },
    namespaceAnnotations: ofNamespace,
  })

  it.each<[string, Record<string, string>, Record<string, string>, object]>([
    ['counts for its pods', {}, { 'offline-grace': '72h' }, { offlineGrace: '72h' }],
    [
      'yields to that of the pod',
      { 'offline-grace': '0s' },
      { 'offline-grace': '72h' },
      { offlineGrace: '0s' },
    ],
    [
      'is about lifetimes only',
      {},
      { image: 'x', 'cpu-limit': '1' },
      { image: undefined, cpuLimit: undefined },
    ],
  ])('%s', (_title, own, ofNamespace, workload) => {
    const named = (all: Record<string, string>) =>
      Object.fromEntries(Object.entries(all).map(([name, text]) => [prefix + name, text]))
    expect(decide(subject(named(own), named(ofNamespace)), mesh)).toMatchObject({ inject: true, workload })
  })

  it('that is wrong is named', () => {
    const decision = decide(subject({}, { [`${prefix}leaf-lifetime`]: '1y' }), mesh)
    expect(decision.warnings).toEqual([expect.stringContaining('leaf-lifetime')])
  })
})

describe('injection', () => {
  const { workload } = readAnnotations({
    'sidecar.edgemesh.io/exclude-ports': '25',
    'sidecar.edgemesh.io/cpu-limit': '1',
  })
  const others = pod(
    {
      initContainers: [
        { name: 'migrate', image: 'm' },
        { name: 'proxy', image: 'x', restartPolicy: 'Always' },
      ],
      volumes: [{ name: 'data', emptyDir: {} }],
      securityContext: { fsGroup: 2000 },
    },
    { labels: { app: 'x' }, annotations: { note: 'kept' } },
  )

  it.each([true, false])('is undone exactly, native: %s', (nativeSidecar) => {
    for (const original of [pod(), others]) {
      const before = structuredClone(original)
      const injected = inject(original, { ...mesh, nativeSidecar }, workload)
      expect(original).toEqual(before)
      expect(injected).not.toEqual(before)
      expect(inject(injected, mesh, workload)).toBe(injected)
      expect(uninject(injected)).toEqual(before)
    }
  })

  it('puts init first, then the sidecar, then what the pod had', () => {
    const { spec, metadata } = inject(others, mesh, workload)
    expect(spec.initContainers?.map((c) => c.name)).toEqual([
      'edgemesh-init',
      'edgemesh-sidecar',
      'migrate',
      'proxy',
    ])
    expect(spec.initContainers?.[1]?.restartPolicy).toBe('Always')
    expect(metadata.annotations).toMatchObject({
      note: 'kept',
      'sidecar.edgemesh.io/status': 'injected',
      'kubectl.kubernetes.io/default-container': 'app',
    })
  })

  it('gives init two capabilities and the sidecar none', () => {
    const [init, sidecar] = inject(pod(), mesh, workload).spec.initContainers ?? []
    expect(init?.securityContext).toMatchObject({
      capabilities: { drop: ['ALL'], add: ['NET_ADMIN', 'NET_RAW'] },
    })
    expect(sidecar?.securityContext).toMatchObject({
      runAsUser: 1337,
      runAsNonRoot: true,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'] },
    })
    expect(sidecar?.ports).toBeUndefined() // what a pod declares may be dialled by peers
    expect(init?.env).toContainEqual({ name: 'EDGEMESH_EXCLUDED_PORTS', value: '25' })
    expect(init?.env).toContainEqual({ name: 'EDGEMESH_IGNORED_SERVICE_IPS', value: '10.96.0.9' })
  })

  it('is a patch of the four places that it changes', () => {
    const injected = inject(others, mesh, workload)
    expect(patch(others, injected).map((o) => o.path)).toEqual([
      '/metadata/annotations',
      '/spec/initContainers',
      '/spec/volumes',
    ])
    expect(patch(others, others)).toEqual([])
  })
})

describe('an admission review', () => {
  const review = (request: unknown) =>
    JSON.stringify({ apiVersion: 'admission.k8s.io/v1', kind: 'AdmissionReview', request })
  const request = { uid: 'u', namespace: 'shop', kind: { kind: 'Pod' }, object: pod() }

  it('is read when it is one of a pod', () => {
    expect(readReview(review(request))).toEqual(request)
    for (const other of [
      undefined,
      {},
      { ...request, uid: 1 },
      { ...request, kind: { kind: 'Service' } },
      { ...request, object: {} },
    ])
      expect(readReview(review(other))).toBeUndefined()
    expect(readReview('{}')).toBeUndefined()
    expect(() => readReview('{')).toThrow()
  })

  it('is always allowed', () => {
    expect(admit(request, { 'edgemesh-injection': 'enabled' }, mesh).response).toMatchObject({
      uid: 'u',
      allowed: true,
      patchType: 'JSONPatch',
    })
    expect(admit(request, {}, mesh).response).toEqual({ uid: 'u', allowed: true })
  })
})

it.each([
  ['1', '28', false],
  ['1', '29', true],
  ['1', '36+', true],
  ['2', '0', true],
  ['', '', false],
])('Kubernetes %s.%s has native sidecars: %s', (major, minor, native) => {
  expect(hasNativeSidecars({ major, minor })).toBe(native)
})
