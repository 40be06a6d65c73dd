import type { KubernetesClient, KubernetesObject } from '#shared/kubernetes/client.ts'
import { Reflector } from '#shared/kubernetes/reflector.ts'
import type { Logger } from '#shared/log.ts'
import type { PodRecord } from '../catalogue/source.ts'
import type { Directory, ReplicaAddress } from '../replicas/directory.ts'
import { presenceLabel } from './presence.ts'

/** What is kept of a replica's Lease. */
export interface LeaseRecord {
  replica: string
  /** Uid of the replica's pod. */
  podUid: string | undefined
  /** In ms since the epoch. */
  validUntil: number
}

/** What is kept of a presence slice. */
export interface PresenceRecord {
  replica: string
  uids: readonly string[]
}

export interface KubernetesDirectoryOptions {
  client: KubernetesClient
  namespace: string
  replica: string
  /** Of every replica: they are pods of one Deployment. */
  port: number
  pods: () => ReadonlyMap<string, PodRecord>
  log: Logger
}

type Raw = KubernetesObject & {
  metadata: { labels?: Record<string, string>; ownerReferences?: { kind?: string; uid?: string }[] }
  spec?: { renewTime?: string; leaseDurationSeconds?: number }
  endpoints?: { targetRef?: { kind?: string; uid?: string } }[]
}

/** The other replicas whose Lease is valid, at the IP of their pod as the catalogue has it. */
export function replicasOf(
  own: string,
  leases: Iterable<LeaseRecord>,
  pods: ReadonlyMap<string, PodRecord>,
  port: number,
  now: number,
): Map<string, ReplicaAddress> {
  const living = [...leases].filter(({ replica, validUntil }) => replica !== own && validUntil > now)
  return new Map(
    living.flatMap(({ replica, podUid }) => {
      const pod = podUid === undefined ? undefined : pods.get(podUid)
      const [host] = pod?.ips ?? []
      return pod === undefined || pod.finished || host === undefined
        ? []
        : [[replica, { host, port }] as const]
    }),
  )
}

export function leaseRecord({ metadata, spec }: Raw): LeaseRecord | undefined {
  const replica = metadata.labels?.[presenceLabel]
  if (replica === undefined) return undefined
  const podUid = metadata.ownerReferences?.find((o) => o.kind === 'Pod')?.uid
  const renewed = Date.parse(spec?.renewTime ?? '')
  const validUntil = Number.isNaN(renewed) ? 0 : renewed + 1_000 * (spec?.leaseDurationSeconds ?? 0)
  return { replica, podUid, validUntil }
}

export function presenceRecord({ metadata, endpoints }: Raw): PresenceRecord | undefined {
  const replica = metadata.labels?.[presenceLabel]
  if (replica === undefined) return undefined
  return { replica, uids: (endpoints ?? []).flatMap((e) => e.targetRef?.uid ?? []) }
}

/** Which replicas live and which pods each has, read from what every replica writes into the API. */
export class KubernetesDirectory implements Directory {
  readonly #options: KubernetesDirectoryOptions
  readonly #leases: Reflector<LeaseRecord>
  readonly #slices: Reflector<PresenceRecord>
  /** Made anew after a change, when somebody asks. */
  #places: Map<string, string> | undefined
  /** What was found out since the slices last changed: they are written some time later. */
  readonly #learnt = new Map<string, string | undefined>()

  constructor(options: KubernetesDirectoryOptions) {
    this.#options = options
    const { client, namespace, log } = options
    const query = { labelSelector: presenceLabel }
    this.#leases = new Reflector<LeaseRecord>({
      ...{ client, query, log, keep: leaseRecord },
      path: `/apis/coordination.k8s.io/v1/namespaces/${namespace}/leases`,
      onChange: () => undefined, // read when somebody asks
    })
    this.#slices = new Reflector<PresenceRecord>({
      ...{ client, query, log, keep: presenceRecord },
      path: `/apis/discovery.k8s.io/v1/namespaces/${namespace}/endpointslices`,
      onChange: () => {
        this.#places = undefined
        this.#learnt.clear()
      },
    })
  }

  /** Does not wait for the first reading: a server that is alone needs none of it. */
  start(): void {
    void this.#leases.start()
    void this.#slices.start()
  }

  get others(): ReadonlyMap<string, ReplicaAddress> {
    const { replica, pods, port } = this.#options
    return replicasOf(replica, this.#leases.objects.values(), pods(), port, Date.now())
  }

  whereIs(podUid: string): string | undefined {
    if (this.#learnt.has(podUid)) return this.#learnt.get(podUid)
    this.#places ??= placesOf(this.#options.replica, this.#slices.objects.values())
    return this.#places.get(podUid)
  }

  learn(podUid: string, replica: string | undefined): void {
    this.#learnt.set(podUid, replica)
  }

  async close(): Promise<void> {
    await Promise.all([this.#leases.close(), this.#slices.close()])
  }
}

function placesOf(own: string, slices: Iterable<PresenceRecord>): Map<string, string> {
  const places = new Map<string, string>()
  for (const { replica, uids } of slices) {
    if (replica !== own) for (const uid of uids) places.set(uid, replica)
  }
  return places
}
