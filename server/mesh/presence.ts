import { sentenceOf } from '#shared/errors.ts'
import { type KubernetesClient, KubernetesError, type KubernetesObject } from '#shared/kubernetes/client.ts'
import { pause } from '#shared/lifecycle.ts'
import type { Logger } from '#shared/log.ts'
import type { PodRecord } from '../catalogue/source.ts'

/** Changes of so many ms are written together. */
const gatherMs = 1_000
const renewEveryMs = 10_000
const leaseSeconds = 30
/** On what each replica writes: its name. */
export const presenceLabel = 'sidecar.edgemesh.io/presence'
/** The API server allows 1,000 endpoints in a slice. */
const perSlice = 1_000

export interface PresentPods {
  /** Counts up at each change, so that nothing is compared while nothing happens. */
  version: number
  uids: readonly string[]
}

export interface PresenceOptions {
  client: KubernetesClient
  namespace: string
  /** Of this server, which is its pod's name. */
  replica: string
  /** The server's own pod: what is written goes when it goes. Undefined outside of a pod. */
  podUid: string | undefined
  present: () => PresentPods
  pods: () => ReadonlyMap<string, PodRecord>
  log: Logger
}

interface PresenceSlice {
  name: string
  endpoints: object[]
}

/** EndpointSlices that say which pods are connected to a replica; pods that the catalogue does not know are left out. */
export function presenceSlices(
  replica: string,
  uids: readonly string[],
  pods: ReadonlyMap<string, PodRecord>,
): PresenceSlice[] {
  const known = [...uids].sort().flatMap((uid) => {
    const pod = pods.get(uid)
    const [address] = pod?.ips.filter((ip) => !ip.includes(':')) ?? []
    if (pod === undefined || address === undefined) return []
    const { namespace, name } = pod
    return [
      { addresses: [address], conditions: { ready: true }, targetRef: { kind: 'Pod', namespace, name, uid } },
    ]
  })
  const slices: PresenceSlice[] = []
  for (let at = 0; at < known.length; at += perSlice)
    slices.push({
      name: `edgemesh-presence-${replica}-${slices.length}`,
      endpoints: known.slice(at, at + perSlice),
    })
  return slices
}

/** Keeps in the API which replicas live (a Lease each) and which pods each has (EndpointSlices), written in batches. */
export class Presence {
  readonly #options: PresenceOptions
  readonly #aborter = new AbortController()
  #running: Promise<void> | undefined
  #version = -1
  #renewedMs = Number.NEGATIVE_INFINITY
  /** What stands in the API, by the name of the slice. */
  #written = new Map<string, string>()

  constructor(options: PresenceOptions) {
    this.#options = options
  }

  start(): void {
    this.#running ??= this.#run()
  }

  /** Takes away what it wrote. */
  async close(): Promise<void> {
    this.#aborter.abort()
    await this.#running
    await this.#write([]).catch(() => undefined) // the owner reference sees to it
  }

  async #run(): Promise<void> {
    const { signal } = this.#aborter
    const { present, pods, replica, log } = this.#options
    for (; !signal.aborted; await pause(gatherMs, signal)) {
      try {
        if (performance.now() - this.#renewedMs > renewEveryMs) await this.#renew()
        const { version, uids } = present()
        if (version === this.#version) continue
        await this.#write(presenceSlices(replica, uids, pods()))
        this.#version = version
      } catch (error) {
        log.debug({ error: sentenceOf(error) }, 'cannot write presence now')
        await pause(renewEveryMs * Math.random(), signal)
      }
    }
  }

  async #renew(): Promise<void> {
    const { namespace, replica } = this.#options
    const renewTime = new Date().toISOString().replace('Z', '000Z')
    await this.#put(`/apis/coordination.k8s.io/v1/namespaces/${namespace}/leases`, {
      apiVersion: 'coordination.k8s.io/v1',
      kind: 'Lease',
      metadata: this.#metadata(replica),
      spec: { holderIdentity: replica, leaseDurationSeconds: leaseSeconds, renewTime },
    })
    this.#renewedMs = performance.now()
  }

  async #write(slices: readonly PresenceSlice[]): Promise<void> {
    const { client, namespace } = this.#options
    const path = `/apis/discovery.k8s.io/v1/namespaces/${namespace}/endpointslices`
    for (const { name, endpoints } of slices) {
      const text = JSON.stringify(endpoints)
      if (this.#written.get(name) === text) continue
      const kind = { apiVersion: 'discovery.k8s.io/v1', kind: 'EndpointSlice' }
      await this.#put(path, {
        ...kind,
        metadata: this.#metadata(name),
        addressType: 'IPv4',
        endpoints,
        ports: [],
      })
      this.#written.set(name, text)
    }
    const names = slices.map((s) => s.name)
    for (const name of this.#written.keys()) {
      if (names.includes(name)) continue
      await client.request('DELETE', `${path}/${name}`).catch(ignore(404))
      this.#written.delete(name)
    }
  }

  #metadata(name: string): KubernetesObject['metadata'] {
    const { namespace, replica, podUid } = this.#options
    const owner = { apiVersion: 'v1', kind: 'Pod', name: replica, uid: podUid }
    return {
      name,
      namespace,
      labels: { [presenceLabel]: replica },
      ...(podUid === undefined ? {} : { ownerReferences: [owner] }),
    }
  }

  async #put<T extends { metadata: { name: string } }>(path: string, body: T): Promise<void> {
    const { client } = this.#options
    const one = `${path}/${body.metadata.name}`
    const stored = await client.find(one)
    if (stored === undefined) return void (await client.request('POST', path, { body }).catch(ignore(409)))
    const { resourceVersion } = stored.metadata
    const metadata = { ...body.metadata, ...(resourceVersion === undefined ? {} : { resourceVersion }) }
    await client.request('PUT', one, { body: { ...body, metadata } })
  }
}

function ignore(status: number): (error: unknown) => void {
  return (error) => {
    if (!(error instanceof KubernetesError && error.status === status)) throw error
  }
}
