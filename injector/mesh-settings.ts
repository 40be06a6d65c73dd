import type { MeshConfig } from '#shared/mesh-config.ts'

/** What is put into every pod, from the mesh's own settings. */
export interface MeshSettings extends MeshConfig {
  /** Of init and sidecar. */
  image: string
  /** clusterIPs of services labelled noproxy=edgemesh. */
  ignoredServiceIps: string[]
  /** The API server knows restartPolicy Always in initContainers. */
  nativeSidecar: boolean
  /** Where the mesh itself runs: never injected. */
  ownNamespace: string
}

export const prefix = 'sidecar.edgemesh.io/'
export const injectLabel = `${prefix}inject`
export const namespaceLabel = 'edgemesh-injection'
export const statusAnnotation = `${prefix}status`
/** What injection added beside containers and volumes, so that it can be taken out again. */
export const addedAnnotation = `${prefix}added`

export const initName = 'edgemesh-init'
export const sidecarName = 'edgemesh-sidecar'
export const volumeNames = ['edgemesh-token', 'edgemesh-state', 'edgemesh-run'] as const
