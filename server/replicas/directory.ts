export interface ReplicaAddress {
  host: string
  port: number
}

/** Which other replicas there are, and where pods are connected as far as that is known. */
export interface Directory {
  /** The other replicas that live, by name. */
  readonly others: ReadonlyMap<string, ReplicaAddress>
  /** The other replica that the pod was last known at; it may have moved meanwhile. */
  whereIs(podUid: string): string | undefined
  /** What was found out by asking: the replica took a message for the pod, or (undefined) did not have it. */
  learn(podUid: string, replica: string | undefined): void
}

/** Pods whose place is remembered. */
const maxRemembered = 100_000

/** Replicas that were told of one another; where pods are is what was found out by asking, kept in memory. */
export class MemoryDirectory implements Directory {
  readonly others: ReadonlyMap<string, ReplicaAddress>
  readonly #places = new Map<string, string>()

  constructor(own: string, peers: ReadonlyMap<string, ReplicaAddress>) {
    this.others = new Map([...peers].filter(([name]) => name !== own))
  }

  whereIs(podUid: string): string | undefined {
    return this.#places.get(podUid)
  }

  learn(podUid: string, replica: string | undefined): void {
    this.#places.delete(podUid)
    if (replica === undefined) return
    const [oldest] = this.#places.keys()
    if (this.#places.size >= maxRemembered && oldest !== undefined) this.#places.delete(oldest)
    this.#places.set(podUid, replica)
  }
}

/** The only one there is. */
export const alone: Directory = new MemoryDirectory('', new Map())
