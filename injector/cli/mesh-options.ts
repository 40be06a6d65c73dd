import { readFileSync } from 'node:fs'
import { parse } from 'yaml'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { KubernetesClient, type KubernetesObject } from '#shared/kubernetes/client.ts'
import { fromConfigData, meshConfigMap } from '#shared/mesh-config.ts'
import type { MeshSettings } from '../mesh-settings.ts'
import { hasNativeSidecars } from '../mesh-source.ts'

export interface ClusterOptions {
  kubeconfig?: string
  context?: string
  /** Of the mesh itself. */
  meshNamespace: string
}

export interface MeshOptions extends ClusterOptions {
  meshConfig?: string
  image: string
  nativeSidecar: boolean
}

type ConfigMap = KubernetesObject & { data?: Record<string, string> }

/** The mesh's settings: from a file with its ConfigMap, else from the cluster. */
export async function meshSettings(options: MeshOptions): Promise<MeshSettings> {
  const { meshNamespace: ownNamespace, image, nativeSidecar, meshConfig } = options
  if (meshConfig !== undefined) {
    const config = fromConfigData((readYaml(meshConfig) as ConfigMap).data)
    return { ...config, image, nativeSidecar, ownNamespace, ignoredServiceIps: [] }
  }
  const client = clientOf(options)
  const path = `/api/v1/namespaces/${ownNamespace}/configmaps/${meshConfigMap}`
  const found = await client.find<ConfigMap>(path)
  if (found === undefined) {
    throw new EdgeMeshError(
      'bad-config',
      `Cannot find the ConfigMap ${ownNamespace}/${meshConfigMap}: is the mesh installed? Name a file that holds it with --mesh-config to go on without a cluster.`,
    )
  }
  const ignored: string[] = []
  await client.list<{ spec?: { clusterIPs?: string[] } }>(
    '/api/v1/services',
    { labelSelector: 'noproxy=edgemesh' },
    ({ spec }) => ignored.push(...(spec?.clusterIPs ?? []).filter((ip) => ip !== 'None')),
  )
  const native =
    nativeSidecar && hasNativeSidecars(await client.get<{ major?: string; minor?: string }>('/version'))
  return {
    ...fromConfigData(found.data),
    image,
    nativeSidecar: native,
    ownNamespace,
    ignoredServiceIps: ignored.sort(),
  }
}

export function clientOf({ kubeconfig, context }: ClusterOptions): KubernetesClient {
  return KubernetesClient.load({ file: kubeconfig, context })
}

function readYaml(file: string): unknown {
  try {
    return parse(readFileSync(file, 'utf8'))
  } catch (error) {
    throw new EdgeMeshError('bad-config', `Cannot read ${file}: ${sentenceOf(error)}.`, error)
  }
}
