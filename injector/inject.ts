import { ports, SIDECAR_UID } from '#shared/ports.ts'
import type { WorkloadSettings } from './annotations.ts'
import {
  addedAnnotation,
  initName,
  type MeshSettings,
  sidecarName,
  statusAnnotation,
  volumeNames,
} from './mesh-settings.ts'
import type { Container, Pod } from './pod.ts'
import { isInjected } from './policy.ts'

const defaultContainer = 'kubectl.kubernetes.io/default-container'
const [tokenVolume, stateVolume, runVolume] = volumeNames
const tokenSeconds = 3_600
/** Bounded heap and threads, no optimizing compiler: memory is paid in each pod (see ARCHITECTURE.md). */
const nodeFlags = ['--max-semi-space-size=1', '--v8-pool-size=1']

/** A new pod with init and sidecar; the one that was given is left as it is. An injected pod is returned as it is. */
export function inject(pod: Pod, mesh: MeshSettings, workload: WorkloadSettings): Pod {
  if (isInjected(pod)) return pod
  const { metadata, spec } = pod
  const init = initContainer(mesh, workload)
  const sidecar = sidecarContainer(mesh, workload)
  const others = spec.initContainers ?? []
  const first = spec.containers[0]?.name
  const names = metadata.annotations?.[defaultContainer] === undefined && first !== undefined
  return {
    ...pod,
    metadata: {
      ...metadata,
      annotations: {
        ...metadata.annotations,
        ...(names ? { [defaultContainer]: first, [addedAnnotation]: defaultContainer } : {}),
        [statusAnnotation]: 'injected',
      },
    },
    spec: {
      ...spec,
      initContainers: mesh.nativeSidecar ? [init, sidecar, ...others] : [init, ...others],
      containers: mesh.nativeSidecar ? spec.containers : [sidecar, ...spec.containers],
      volumes: [...volumes(), ...(spec.volumes ?? [])],
    },
  }
}

/** The pod as it was before injection. */
export function uninject(pod: Pod): Pod {
  if (!isInjected(pod)) return pod
  const {
    [statusAnnotation]: _status,
    [addedAnnotation]: added,
    ...annotations
  } = pod.metadata.annotations ?? {}
  for (const name of (added ?? '').split(',')) delete annotations[name]
  const ours = (c: { name: string }) => [initName, sidecarName, ...volumeNames].includes(c.name as never)
  const { initContainers = [], volumes: all = [], ...spec } = pod.spec
  const [inits, rest] = [initContainers.filter((c) => !ours(c)), all.filter((v) => !ours(v))]
  const { annotations: _all, ...metadata } = pod.metadata
  return {
    ...pod,
    metadata: { ...metadata, ...(Object.keys(annotations).length === 0 ? {} : { annotations }) },
    spec: {
      ...spec,
      containers: spec.containers.filter((c) => !ours(c)),
      ...(inits.length === 0 ? {} : { initContainers: inits }),
      ...(rest.length === 0 ? {} : { volumes: rest }),
    },
  }
}

const value = (name: string, text: string) => ({ name, value: text })
const field = (name: string, fieldPath: string) => ({ name, valueFrom: { fieldRef: { fieldPath } } })
/** Variables that say nothing are left out. */
const unlessEmpty = (name: string, list: readonly (string | number)[]) =>
  list.length === 0 ? [] : [value(name, list.join(','))]

function initContainer(mesh: MeshSettings, workload: WorkloadSettings): Container {
  return {
    name: initName,
    image: workload.image ?? mesh.image,
    imagePullPolicy: 'IfNotPresent',
    command: ['node', '/edgemesh/sidecar.js', 'init'],
    env: [
      value('EDGEMESH_SERVICE_CIDRS', (workload.serviceCidrs ?? mesh.serviceCidrs).join(',')),
      ...unlessEmpty('EDGEMESH_IGNORED_SERVICE_IPS', mesh.ignoredServiceIps),
      ...unlessEmpty('EDGEMESH_EXCLUDED_CIDRS', workload.excludedCidrs),
      ...unlessEmpty('EDGEMESH_EXCLUDED_PORTS', workload.excludedPorts),
    ],
    resources: { requests: { cpu: '10m', memory: '64Mi' }, limits: { memory: '160Mi' } },
    securityContext: {
      runAsUser: 0,
      runAsGroup: 0,
      runAsNonRoot: false,
      privileged: false,
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'], add: ['NET_ADMIN', 'NET_RAW'] },
      seccompProfile: { type: 'RuntimeDefault' },
    },
    terminationMessagePolicy: 'FallbackToLogsOnError',
    volumeMounts: [{ name: runVolume, mountPath: '/run' }], // iptables locks /run/xtables.lock
  }
}

function sidecarContainer(mesh: MeshSettings, workload: WorkloadSettings): Container {
  const probe = (path: string, more: object) => ({
    httpGet: { path, port: ports.sidecarAdmin },
    timeoutSeconds: 3,
    ...more,
  })
  const { cpuRequest, memoryRequest, cpuLimit, memoryLimit } = workload
  return {
    name: sidecarName,
    image: workload.image ?? mesh.image,
    imagePullPolicy: 'IfNotPresent',
    command: ['node', ...nodeFlags, '/edgemesh/sidecar.js', 'run'],
    env: [
      field('POD_UID', 'metadata.uid'),
      field('POD_NAME', 'metadata.name'),
      field('POD_NAMESPACE', 'metadata.namespace'),
      field('POD_IPS', 'status.podIPs'),
      field('HOST_IP', 'status.hostIP'),
      field('NODE_NAME', 'spec.nodeName'),
      value('EDGEMESH_SERVER', mesh.servers.join(',')),
      value('EDGEMESH_TRUST_BUNDLE', mesh.trustBundle),
      value('EDGEMESH_TRUST_DOMAIN', mesh.trustDomain),
      value('EDGEMESH_CLUSTER_DOMAIN', mesh.clusterDomain),
      value('EDGEMESH_LOG_LEVEL', workload.logLevel),
      value('EDGEMESH_DRAIN_SECONDS', String(workload.drainSeconds)),
      ...(workload.offlineGrace === undefined
        ? []
        : [value('EDGEMESH_OFFLINE_GRACE', workload.offlineGrace)]),
      ...unlessEmpty('EDGEMESH_UPSTREAM_DNS', workload.upstreamDns),
      ...unlessEmpty('EDGEMESH_IGNORED_SERVICE_IPS', mesh.ignoredServiceIps),
      value('EDGEMESH_TOKEN_FILE', '/run/secrets/edgemesh/token'),
      value('EDGEMESH_STATE_DIR', '/var/lib/edgemesh'),
      value('EDGEMESH_IDENTITY_DIR', '/run/edgemesh/identity'),
      value('MALLOC_ARENA_MAX', '1'),
    ],
    resources: {
      requests: { cpu: cpuRequest, memory: memoryRequest },
      limits: { memory: memoryLimit, ...(cpuLimit === undefined ? {} : { cpu: cpuLimit }) },
    },
    ...(mesh.nativeSidecar
      ? {
          restartPolicy: 'Always',
          startupProbe: probe('/readyz', { periodSeconds: 1, failureThreshold: 120 }),
        }
      : {}),
    readinessProbe: probe('/readyz', { periodSeconds: 5, failureThreshold: 3 }),
    livenessProbe: probe('/healthz', { periodSeconds: 10, failureThreshold: 6 }),
    securityContext: {
      runAsUser: SIDECAR_UID,
      runAsGroup: SIDECAR_UID,
      runAsNonRoot: true,
      privileged: false,
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'] },
      seccompProfile: { type: 'RuntimeDefault' },
    },
    terminationMessagePolicy: 'FallbackToLogsOnError',
    volumeMounts: [
      { name: tokenVolume, mountPath: '/run/secrets/edgemesh', readOnly: true },
      { name: stateVolume, mountPath: '/var/lib/edgemesh' },
      { name: runVolume, mountPath: '/run/edgemesh' },
    ],
  }
}

function volumes() {
  const serviceAccountToken = { audience: 'edgemesh', expirationSeconds: tokenSeconds, path: 'token' }
  return [
    { name: tokenVolume, projected: { sources: [{ serviceAccountToken }] } },
    { name: stateVolume, emptyDir: { sizeLimit: '64Mi' } },
    { name: runVolume, emptyDir: { medium: 'Memory', sizeLimit: '4Mi' } }, // keys stay in memory
  ]
}
