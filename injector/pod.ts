/** The fields of a pod that are read or written here; all others pass through untouched. */
export interface Container {
  name: string
  restartPolicy?: string
  ports?: { containerPort?: number; protocol?: string }[]
  securityContext?: { runAsUser?: number } & Record<string, unknown>
  [field: string]: unknown
}

export interface PodSpec {
  containers: Container[]
  initContainers?: Container[]
  volumes?: ({ name: string } & Record<string, unknown>)[]
  hostNetwork?: boolean
  restartPolicy?: string
  nodeSelector?: Record<string, string>
  os?: { name?: string }
  securityContext?: { runAsUser?: number } & Record<string, unknown>
  [field: string]: unknown
}

export interface OwnerReference {
  apiVersion: string
  kind: string
  name: string
  uid: string
  controller?: boolean
}

export interface Pod {
  apiVersion?: string
  kind?: string
  metadata: {
    name?: string
    generateName?: string
    namespace?: string
    uid?: string
    labels?: Record<string, string>
    annotations?: Record<string, string>
    ownerReferences?: OwnerReference[]
    [field: string]: unknown
  }
  spec: PodSpec
  [field: string]: unknown
}
