import type { ServerMessage } from '#shared/wire.ts'

/** A pod's control channel, as others see it. */
export interface Presence {
  readonly podUid: string
  send(message: ServerMessage): void
  /** Ends the channel; `code` is one of closeCodes. */
  end(code: number, error: string, message: string): void
}

/** Which pods are connected to this replica. */
export class Registry {
  readonly #byPod = new Map<string, Presence>()
  #version = 0

  /** Counts up at each change of who is here. */
  get version(): number {
    return this.#version
  }

  get size(): number {
    return this.#byPod.size
  }

  all(): Iterable<Presence> {
    return this.#byPod.values()
  }

  find(podUid: string): Presence | undefined {
    return this.#byPod.get(podUid)
  }

  /** Takes the pod's place; returns the channel that had it. */
  take(presence: Presence): Presence | undefined {
    const before = this.#byPod.get(presence.podUid)
    if (before === undefined) this.#version++
    this.#byPod.set(presence.podUid, presence)
    return before
  }

  /** Does nothing when another channel has taken the place. */
  leave(presence: Presence): void {
    if (this.#byPod.get(presence.podUid) !== presence) return
    this.#byPod.delete(presence.podUid)
    this.#version++
  }
}
