/** Pods at other replicas whose address is remembered, the latest. */
const maxElsewhere = 20_000

/** Where a server sees a pod's channel come from; undefined where nothing is known. */
interface Seen {
  readonly podUid: string
  readonly observed: { address: string } | undefined
}

/**
 * Which pods come from one public address: most likely they are in one network, and should not meet in the cloud. Only
 * what replicas have seen themselves counts, not what a pod says of itself.
 */
export class Neighbours {
  readonly #elsewhere = new Map<string, string>()
  readonly #here: (podUid: string) => Seen | undefined

  constructor(here: (podUid: string) => Seen | undefined) {
    this.#here = here
  }

  /** The pod has come up at another replica, from that address. */
  onMoved(podUid: string, address: string | undefined): void {
    this.#elsewhere.delete(podUid)
    if (address === undefined) return
    this.#elsewhere.set(podUid, address)
    for (const oldest of this.#elsewhere.keys()) {
      if (this.#elsewhere.size <= maxElsewhere) return
      this.#elsewhere.delete(oldest)
    }
  }

  areNear({ observed }: Seen, podUid: string): boolean {
    const peer = this.#here(podUid)
    const address = peer === undefined ? this.#elsewhere.get(podUid) : peer.observed?.address
    return address !== undefined && address === observed?.address
  }
}
