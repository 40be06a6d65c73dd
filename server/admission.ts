import { networkOf } from '#shared/networks.ts'
import type { Address } from '#shared/wire.ts'

export interface AdmissionLimits {
  /** Connections in all. */
  connections: number
  /** Of these, such as have not shown yet that they belong to the mesh: others must find room beside them. */
  unproven: number
  /** Of these, from one address, or one /64 of IPv6. */
  unprovenPerAddress: number
}

/**
 * A whole site may be behind one NAT: thousands of sidecars with thousands of relayed streams each way. So an address
 * is limited only in what nobody has vouched for yet; what a token or ticket has proven is limited by identity.
 * 2,000 are more than reconnect at the same moment, as they do so at random within a second and are through in some ms.
 */
export const admissionLimits: AdmissionLimits = {
  connections: 18_000,
  unproven: 6_000,
  unprovenPerAddress: 2_000,
}

/** Which connections may stay. Pure bookkeeping: who closes them is told by the answers. */
export class Admission {
  readonly #limits: AdmissionLimits
  /** Every unproven connection with its network. */
  readonly #unproven = new Map<string, string>()
  readonly #perNetwork = new Map<string, number>()
  #connections = 0

  constructor(limits: AdmissionLimits = admissionLimits) {
    this.#limits = limits
  }

  get unproven(): number {
    return this.#unproven.size
  }

  /** False when there is no room: then it is not counted, and must be closed. */
  enter(remote: Address): boolean {
    const network = networkOf(remote.address)
    const { connections, unproven, unprovenPerAddress } = this.#limits
    const own = this.#perNetwork.get(network) ?? 0
    if (this.#connections >= connections || this.#unproven.size >= unproven || own >= unprovenPerAddress)
      return false
    if (this.#unproven.has(keyOf(remote))) return false // to another address of ours: two could not be told apart
    this.#connections++
    this.#perNetwork.set(network, own + 1)
    this.#unproven.set(keyOf(remote), network)
    return true
  }

  /** It has shown a good token or ticket. */
  prove(remote: Address): void {
    const network = this.#unproven.get(keyOf(remote))
    if (network === undefined) return
    this.#unproven.delete(keyOf(remote))
    const left = (this.#perNetwork.get(network) ?? 1) - 1
    if (left === 0) this.#perNetwork.delete(network)
    else this.#perNetwork.set(network, left)
  }

  /** One that had entered is closed. */
  leave(remote: Address): void {
    this.prove(remote)
    this.#connections--
  }
}

function keyOf({ address, port }: Address): string {
  return `${address} ${port}`
}
