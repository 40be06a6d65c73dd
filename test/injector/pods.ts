import type { MeshSettings } from '../../injector/mesh-settings.ts'
import type { Container, Pod } from '../../injector/pod.ts'

export interface PodCase {
  name: string
  namespaceLabels: Record<string, string>
  pod: Pod
}

/** What the goldens are made with; the cluster test compares with its own mesh's settings instead. */
export const goldenMesh: MeshSettings = {
  image: 'edgemesh/edgemesh-sidecar:0.1.0',
  servers: ['203.0.113.7:20004'],
  trustBundle: '-----BEGIN CERTIFICATE-----\ngolden\n-----END CERTIFICATE-----\n',
  trustDomain: 'cluster.local',
  clusterDomain: 'cluster.local',
  serviceCidrs: ['10.240.0.0/16'],
  ignoredServiceIps: [],
  nativeSidecar: true,
  ownNamespace: 'edgemesh-system',
}

const app = (more: object = {}): Container => ({ name: 'app', image: 'example/app:1', ...more })
const enabled = { 'edgemesh-injection': 'enabled' }
const label = (value: string) => ({ labels: { 'sidecar.edgemesh.io/inject': value } })
const annotations = (more: Record<string, string>) => ({
  annotations: Object.fromEntries(Object.entries(more).map(([k, v]) => [`sidecar.edgemesh.io/${k}`, v])),
})
const probe = { httpGet: { path: '/healthz', port: 'http' }, periodSeconds: 10 }
const http = { name: 'http', containerPort: 8080, protocol: 'TCP' }

function of(
  name: string,
  spec: object = {},
  metadata: object = {},
  namespaceLabels: Record<string, string> = enabled,
): PodCase {
  const pod = {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, ...metadata },
    spec: { containers: [app()], ...spec },
  }
  return { name, namespaceLabels, pod: pod as Pod }
}

/** Pods as charts in the field make them, and every way of asking for injection. */
export const cases: PodCase[] = [
  of('plain'),
  of('opted-in', {}, label('true'), {}),
  of('opted-out', {}, label('false')),
  of('unknown-pod-label', {}, label('yes')),
  of('namespace-disabled', {}, {}, { 'edgemesh-injection': 'disabled' }),
  of('namespace-disabled-pod-in', {}, label('true'), { 'edgemesh-injection': 'disabled' }),
  of('namespace-unknown', {}, {}, { 'edgemesh-injection': 'on' }),
  of('namespace-silent', {}, {}, {}),
  of('host-network', {
    hostNetwork: true,
    containers: [app({ ports: [{ containerPort: 8080, hostPort: 8080 }] })],
  }),
  of('windows-os', { os: { name: 'windows' } }),
  of('windows-selector', { nodeSelector: { 'kubernetes.io/os': 'windows' } }),
  of('linux-os', { os: { name: 'linux' } }),
  of('linux-selector', { nodeSelector: { 'kubernetes.io/os': 'linux', disktype: 'ssd' } }),
  of('uid-1337-pod', { securityContext: { runAsUser: 1337 } }),
  of('uid-1337-container', { containers: [app({ securityContext: { runAsUser: 1337 } })] }),
  of('uid-1337-overridden', {
    securityContext: { runAsUser: 1337 },
    containers: [app({ securityContext: { runAsUser: 1000 } })],
  }),
  of('uid-1000', { securityContext: { runAsUser: 1000, runAsGroup: 1000, runAsNonRoot: true } }),
  of('fs-group', { securityContext: { fsGroup: 2000, fsGroupChangePolicy: 'OnRootMismatch' } }),
  of('supplemental-groups', { securityContext: { supplementalGroups: [4000, 5000] } }),
  of('seccomp', { securityContext: { seccompProfile: { type: 'RuntimeDefault' } } }),
  of('restricted', {
    securityContext: { runAsNonRoot: true, runAsUser: 65534, seccompProfile: { type: 'RuntimeDefault' } },
    containers: [
      app({ securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: ['ALL'] } } }),
    ],
  }),
  of('read-only-root', {
    containers: [
      app({
        securityContext: { readOnlyRootFilesystem: true },
        volumeMounts: [{ name: 'tmp', mountPath: '/tmp' }],
      }),
    ],
    volumes: [{ name: 'tmp', emptyDir: {} }],
  }),
  of('privileged', { containers: [app({ securityContext: { privileged: true } })] }),
  of('own-sidecar', { containers: [app(), { name: 'metrics-exporter', image: 'example/exporter:2' }] }),
  of('log-shipper', {
    containers: [
      app({ volumeMounts: [{ name: 'logs', mountPath: '/var/log/app' }] }),
      {
        name: 'shipper',
        image: 'example/shipper:2',
        volumeMounts: [{ name: 'logs', mountPath: '/logs', readOnly: true }],
      },
    ],
    volumes: [{ name: 'logs', emptyDir: {} }],
  }),
  of('init-container', { initContainers: [{ name: 'migrate', image: 'example/migrate:1', args: ['up'] }] }),
  of('two-init-containers', {
    initContainers: [
      {
        name: 'wait-for-db',
        image: 'busybox:1.36',
        command: ['sh', '-c', 'until nc -z db 5432; do sleep 1; done'],
      },
      { name: 'migrate', image: 'example/migrate:1' },
    ],
  }),
  of('native-sidecar', {
    initContainers: [{ name: 'vault-agent', image: 'example/vault:1', restartPolicy: 'Always' }],
  }),
  of('mixed-init', {
    initContainers: [
      { name: 'chown', image: 'busybox:1.36', securityContext: { runAsUser: 0 } },
      { name: 'agent', image: 'example/agent:1', restartPolicy: 'Always' },
    ],
  }),
  of('projected-volume', {
    volumes: [
      {
        name: 'bundle',
        projected: {
          sources: [
            { configMap: { name: 'roots' } },
            { serviceAccountToken: { audience: 'vault', path: 'token' } },
          ],
        },
      },
    ],
  }),
  of('config-map-volume', {
    volumes: [
      { name: 'config', configMap: { name: 'app', optional: true, items: [{ key: 'a', path: 'b' }] } },
    ],
  }),
  of('secret-volume', { volumes: [{ name: 'tls', secret: { secretName: 'tls', defaultMode: 256 } }] }),
  of('host-path', { volumes: [{ name: 'docker', hostPath: { path: '/var/run', type: 'Directory' } }] }),
  of('downward-volume', {
    volumes: [
      {
        name: 'info',
        downwardAPI: { items: [{ path: 'labels', fieldRef: { fieldPath: 'metadata.labels' } }] },
      },
    ],
  }),
  of('persistent-claim', { volumes: [{ name: 'data', persistentVolumeClaim: { claimName: 'data-0' } }] }),
  of('ephemeral-claim', {
    volumes: [
      {
        name: 'scratch',
        ephemeral: {
          volumeClaimTemplate: {
            spec: { accessModes: ['ReadWriteOnce'], resources: { requests: { storage: '1Gi' } } },
          },
        },
      },
    ],
  }),
  of('csi-volume', {
    volumes: [{ name: 'secrets', csi: { driver: 'secrets-store.csi.k8s.io', readOnly: true } }],
  }),
  of('sub-path', {
    containers: [
      app({ volumeMounts: [{ name: 'config', mountPath: '/etc/app/app.conf', subPath: 'app.conf' }] }),
    ],
    volumes: [{ name: 'config', configMap: { name: 'app' } }],
  }),
  of('image-pull-secrets', { imagePullSecrets: [{ name: 'registry' }] }),
  of('tolerations', {
    tolerations: [{ key: 'node-role.kubernetes.io/edge', operator: 'Exists', effect: 'NoSchedule' }],
  }),
  of('affinity', {
    affinity: {
      podAntiAffinity: {
        preferredDuringSchedulingIgnoredDuringExecution: [
          {
            weight: 1,
            podAffinityTerm: {
              topologyKey: 'kubernetes.io/hostname',
              labelSelector: { matchLabels: { app: 'x' } },
            },
          },
        ],
      },
    },
  }),
  of('topology-spread', {
    topologySpreadConstraints: [
      {
        maxSkew: 1,
        topologyKey: 'topology.kubernetes.io/zone',
        whenUnsatisfiable: 'ScheduleAnyway',
        labelSelector: { matchLabels: { app: 'x' } },
      },
    ],
  }),
  of('host-aliases', { hostAliases: [{ ip: '10.1.2.3', hostnames: ['legacy.example'] }] }),
  of('dns-config', { dnsConfig: { options: [{ name: 'ndots', value: '2' }] } }),
  of('dns-policy-none', {
    dnsPolicy: 'None',
    dnsConfig: { nameservers: ['9.9.9.9'], searches: ['example.com'] },
  }),
  of('hostname-subdomain', { hostname: 'db-0', subdomain: 'db' }),
  of('share-process-namespace', { shareProcessNamespace: true }),
  of('host-pid', { hostPID: true }),
  of('no-service-links', { enableServiceLinks: false }),
  of('no-token', { automountServiceAccountToken: false }),
  of('service-account', { serviceAccountName: 'default' }),
  of('grace-period', { terminationGracePeriodSeconds: 120 }),
  of('restart-never', { restartPolicy: 'Never' }),
  of('restart-on-failure', { restartPolicy: 'OnFailure', activeDeadlineSeconds: 600 }),
  of('probes-by-name', {
    containers: [app({ ports: [http], readinessProbe: probe, livenessProbe: probe, startupProbe: probe })],
  }),
  of('grpc-probe', {
    containers: [app({ ports: [{ containerPort: 9090 }], readinessProbe: { grpc: { port: 9090 } } })],
  }),
  of('exec-probe', { containers: [app({ livenessProbe: { exec: { command: ['true'] } } })] }),
  of('lifecycle', { containers: [app({ lifecycle: { preStop: { exec: { command: ['sleep', '5'] } } } })] }),
  of('env-from', {
    containers: [
      app({ envFrom: [{ configMapRef: { name: 'env' } }, { secretRef: { name: 'env', optional: true } }] }),
    ],
  }),
  of('env-fields', {
    containers: [
      app({
        env: [
          { name: 'IP', valueFrom: { fieldRef: { fieldPath: 'status.podIP' } } },
          { name: 'CPU', valueFrom: { resourceFieldRef: { resource: 'limits.cpu' } } },
        ],
      }),
    ],
  }),
  of('resources', {
    containers: [app({ resources: { requests: { cpu: '2', memory: '1Gi' }, limits: { memory: '2Gi' } } })],
  }),
  of('udp-port', { containers: [app({ ports: [{ containerPort: 53, protocol: 'UDP' }] })] }),
  of('many-ports', {
    containers: [
      app({ ports: [http, { name: 'grpc', containerPort: 9090 }, { name: 'admin', containerPort: 9901 }] }),
    ],
  }),
  of('port-of-ours', { containers: [app({ ports: [{ containerPort: 40001 }] })] }),
  of('tunnel-port-of-ours', { containers: [app({ ports: [{ containerPort: 20006 }] })] }),
  of('name-of-ours', { containers: [app(), { name: 'edgemesh-sidecar', image: 'example/other:1' }] }),
  of('stdin-tty', { containers: [app({ stdin: true, tty: true })] }),
  of('scheduling-gate', { schedulingGates: [{ name: 'example.com/wait' }] }),
  of('default-container', {}, { annotations: { 'kubectl.kubernetes.io/default-container': 'app' } }),
  of(
    'annotated',
    {},
    annotations({
      'cpu-request': '250m',
      'memory-request': '96Mi',
      'cpu-limit': '1',
      'memory-limit': '300Mi',
      'log-level': 'debug',
      'drain-seconds': '60',
    }),
  ),
  of(
    'excluding',
    {},
    annotations({
      'exclude-cidrs': '10.240.9.0/24',
      'exclude-ports': '25,465',
      'upstream-dns': '9.9.9.9,1.1.1.1',
    }),
  ),
  of('offline-for-days', {}, annotations({ 'leaf-lifetime': '30d', 'offline-grace': '7d' })),
  of(
    'own-cidrs-and-image',
    {},
    annotations({ 'service-cidrs': '10.240.0.0/16,fd00:10::/108', image: 'registry.example/edgemesh:2' }),
  ),
  of(
    'bad-annotations',
    {},
    annotations({ 'cpu-request': 'lots', 'log-level': 'loud', 'exclude-ports': '0', 'cpu-reqest': '1' }),
  ),
  of(
    'stateful',
    { hostname: 'db-0', subdomain: 'db' },
    { labels: { 'statefulset.kubernetes.io/pod-name': 'db-0' } },
  ),
]
