import { SIDECAR_UID, sidecarPorts } from '#shared/ports.ts'
import { inheritedAnnotations, readAnnotations, type WorkloadSettings } from './annotations.ts'
import {
  initName,
  injectLabel,
  type MeshSettings,
  namespaceLabel,
  sidecarName,
  statusAnnotation,
} from './mesh-settings.ts'
import type { Container, Pod } from './pod.ts'

export type SkipReason =
  | 'not-asked'
  | 'opted-out'
  | 'already-injected'
  | 'system-namespace'
  | 'unknown-label'
  | 'host-network'
  | 'windows'
  | 'mirror-pod'
  | 'uid-conflict'
  | 'port-conflict'
  | 'name-conflict'
  | 'classic-job'
  | 'not-configured'

export type Decision =
  | { inject: true; workload: WorkloadSettings; warnings: string[] }
  /** `event`: somebody asked for injection, so they are told why there is none. */
  | { inject: false; reason: SkipReason; sentence: string; event: boolean; warnings: string[] }

export interface Subject {
  pod: Pod
  namespace: string
  namespaceLabels: Record<string, string>
  /** Some count for all pods of the namespace that do not say otherwise. */
  namespaceAnnotations?: Record<string, string>
}

const systemNamespaces = ['kube-system', 'kube-public', 'kube-node-lease']

/** Whether a pod is injected: what was asked for, then what stands against it. */
export function decide(subject: Subject, mesh: MeshSettings): Decision {
  return asked(subject, mesh) ?? obstacle(subject.pod, mesh) ?? accept(subject)
}

function accept({ pod: { metadata }, namespaceAnnotations }: Subject): Decision {
  const annotations = { ...inheritedAnnotations(namespaceAnnotations), ...metadata.annotations }
  return { inject: true, ...readAnnotations(annotations) }
}

const skip = (reason: SkipReason, event: boolean, sentence: string): Decision => ({
  inject: false,
  reason,
  sentence,
  event,
  warnings: event ? [`edgemesh did not inject this pod: ${sentence}`] : [],
})

/** Undefined when injection is asked for. "false" always wins; the pod's own label comes before its namespace's. */
function asked({ pod, namespace, namespaceLabels }: Subject, mesh: MeshSettings): Decision | undefined {
  const own = pod.metadata.labels?.[injectLabel]
  const ofNamespace = namespaceLabels[namespaceLabel]
  if (own === 'false') return skip('opted-out', false, `the pod says ${injectLabel}: "false"`)
  if (isInjected(pod)) return skip('already-injected', false, 'the pod has a sidecar already')
  if (own !== undefined && own !== 'true')
    return skip('unknown-label', true, `label ${injectLabel} is "${own}"; it must be "true" or "false"`)
  if (own === undefined) {
    if (ofNamespace === undefined)
      return skip('not-asked', false, 'neither the pod nor its namespace asks for it')
    if (ofNamespace === 'disabled')
      return skip('opted-out', false, `the namespace says ${namespaceLabel}: disabled`)
    if (ofNamespace !== 'enabled') {
      return skip(
        'unknown-label',
        true,
        `label ${namespaceLabel} of namespace ${namespace} is "${ofNamespace}"; it must be enabled or disabled`,
      )
    }
  }
  if (systemNamespaces.includes(namespace) || namespace === mesh.ownNamespace)
    return skip('system-namespace', true, `pods of namespace ${namespace} are never injected`)
  return undefined
}

export function isInjected({ metadata, spec }: Pod): boolean {
  const names = [...spec.containers, ...(spec.initContainers ?? [])].map((c) => c.name)
  return metadata.annotations?.[statusAnnotation] === 'injected' && names.includes(sidecarName)
}

/** What makes it impossible, or would break the app. */
function obstacle({ metadata, spec }: Pod, mesh: MeshSettings): Decision | undefined {
  const all: Container[] = [...spec.containers, ...(spec.initContainers ?? [])]
  if (metadata.annotations?.['kubernetes.io/config.mirror'] !== undefined)
    return skip('mirror-pod', true, 'it is the mirror of a static pod')
  if (spec.hostNetwork === true)
    return skip('host-network', true, 'it uses the host network, whose rules are never touched')
  if (spec.os?.name === 'windows' || spec.nodeSelector?.['kubernetes.io/os'] === 'windows')
    return skip('windows', true, 'it runs on Windows')
  const named = all.find((c) => c.name === initName || c.name === sidecarName)
  if (named !== undefined)
    return skip('name-conflict', true, `it has a container of its own named ${named.name}`)
  const conflicting = all.find(
    (c) => (c.securityContext?.runAsUser ?? spec.securityContext?.runAsUser) === SIDECAR_UID,
  )
  if (conflicting !== undefined) {
    return skip(
      'uid-conflict',
      true,
      `container ${conflicting.name} runs as uid ${SIDECAR_UID}, which is the sidecar's: its traffic would not be captured. Give it another runAsUser`,
    )
  }
  const taken = all.flatMap((c) => c.ports ?? []).find((p) => sidecarPorts.includes(p.containerPort ?? 0))
  if (taken !== undefined)
    return skip('port-conflict', true, `it uses port ${taken.containerPort}, which the sidecar needs`)
  if (!mesh.nativeSidecar && spec.restartPolicy !== undefined && spec.restartPolicy !== 'Always') {
    return skip(
      'classic-job',
      true,
      'it runs to its end, and this cluster (before 1.29) has no native sidecars: the sidecar would keep it from completing',
    )
  }
  if (mesh.servers.length === 0)
    return skip('not-configured', true, "the server's public address is not known; run edgemesh check")
  if (mesh.serviceCidrs.length === 0)
    return skip('not-configured', true, 'the service CIDRs are not known; run edgemesh check')
  return undefined
}
