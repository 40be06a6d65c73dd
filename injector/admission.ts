import { inject } from './inject.ts'
import type { MeshSettings } from './mesh-settings.ts'
import type { Pod } from './pod.ts'
import { type Decision, decide } from './policy.ts'

export interface AdmissionRequest {
  uid: string
  namespace?: string
  operation?: string
  dryRun?: boolean
  kind?: { group?: string; kind?: string }
  object?: unknown
}

export interface PatchOperation {
  op: 'add'
  path: string
  value: unknown
}

export interface Admission {
  response: object
  pod: Pod
  decision: Decision
}

const maxWarning = 250

/** What to answer to one request: always allowed; with a patch where the pod is injected. */
export function admit(
  request: AdmissionRequest,
  namespaceLabels: Record<string, string>,
  mesh: MeshSettings,
  namespaceAnnotations: Record<string, string> = {},
): Admission {
  const pod = request.object as Pod
  const namespace = request.namespace ?? 'default'
  const decision = decide({ pod, namespace, namespaceLabels, namespaceAnnotations }, mesh)
  const warnings = decision.warnings.map((w) => w.slice(0, maxWarning))
  const base = { uid: request.uid, allowed: true, ...(warnings.length === 0 ? {} : { warnings }) }
  if (!decision.inject) return { response: base, pod, decision }
  const operations = patch(pod, inject(pod, mesh, decision.workload))
  const encoded = Buffer.from(JSON.stringify(operations)).toString('base64')
  return { response: { ...base, patchType: 'JSONPatch', patch: encoded }, pod, decision }
}

const patched = [
  ['metadata', 'annotations'],
  ['spec', 'initContainers'],
  ['spec', 'containers'],
  ['spec', 'volumes'],
] as const

/** JSON patch of what injection changes. "add" of a member replaces the one that is there (RFC 6902, 4.1). */
export function patch(before: Pod, after: Pod): PatchOperation[] {
  return patched.flatMap(([part, field]) => {
    const value = after[part][field]
    return value === before[part][field] ? [] : [{ op: 'add', path: `/${part}/${field}`, value } as const]
  })
}

/** The request of an AdmissionReview v1; undefined when it is not one of a pod. */
export function readReview(text: string): AdmissionRequest | undefined {
  const review = JSON.parse(text) as { apiVersion?: string; kind?: string; request?: AdmissionRequest }
  const { request } = review
  if (review.apiVersion !== 'admission.k8s.io/v1' || review.kind !== 'AdmissionReview') return undefined
  if (typeof request?.uid !== 'string' || request.kind?.kind !== 'Pod') return undefined
  const pod = request.object as Partial<Pod> | undefined
  return typeof pod?.metadata === 'object' && Array.isArray(pod.spec?.containers) ? request : undefined
}
