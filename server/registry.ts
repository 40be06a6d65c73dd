import { pause } from '#shared/lifecycle.ts'
import type { ServerMessage } from '#shared/wire.ts'

/** A pod's control channel, as others see it. */
export interface Presence {
  readonly podUid: string
  send(message: ServerMessage): void
  /** Ends the channel; `code` is one of closeCodes. */
  end(code: number, error: string, message: string): void
}

/** How long a pod that lost its channel, or has not found a server that just started, is expected back, in ms. */
export const returnMs = 3_000

/** Which pods are connected to this replica, and which may be back in a moment. */
export class Registry {
  readonly #byPod = new Map<string, Presence>()
  /** When pods left that did not say bye, oldest first; no older than `returnMs`. */
  readonly #left = new Map<string, number>()
  readonly #waiting = new Map<string, Set<(presence: Presence) => void>>()
  readonly #returnMs: number
  readonly #startedAt: number
  #version = 0

  constructor(returnAfterMs = returnMs, now = performance.now()) {
    this.#returnMs = returnAfterMs
    this.#startedAt = now
  }

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

  /** Takes the pod's place; returns the channel that had it. */
  take(presence: Presence): Presence | undefined {
    const before = this.#byPod.get(presence.podUid)
    if (before === undefined) this.#version++
    this.#byPod.set(presence.podUid, presence)
    this.#left.delete(presence.podUid)
    for (const resolve of this.#waiting.get(presence.podUid) ?? []) resolve(presence)
    return before
  }

  /**
   * Does nothing when another channel has taken the place. `expected` when the pod lost its channel without a word:
   * its sidecar or its network will likely be back.
   */
  leave(presence: Presence, expected = false, now = performance.now()): void {
    const { podUid } = presence
    if (this.#byPod.get(podUid) !== presence) return
    this.#byPod.delete(podUid)
    this.#version++
    if (!expected) return
    for (const [uid, at] of this.#left) {
      if (now - at < this.#returnMs) break
      this.#left.delete(uid)
    }
    this.#left.set(podUid, now)
  }

  /**
   * The pod's channel, waited for where it may be back in a moment: after a restart of this server, or of the pod's
   * sidecar, the two sides of a connection come back in any order, and neither should be told that the other is gone.
   */
  async find(podUid: string): Promise<Presence | undefined> {
    const waitMs = this.expectedMs(podUid)
    const given = new AbortController()
    if (waitMs > 0) void pause(waitMs, given.signal).then(() => given.abort())
    else given.abort()
    return this.arrival(podUid, given.signal)
  }

  get(podUid: string): Presence | undefined {
    return this.#byPod.get(podUid)
  }

  /** How much longer the pod is expected to come (back) here, in ms; `since` is when another reason came up. */
  expectedMs(podUid: string, since = 0, now = performance.now()): number {
    return Math.max(0, Math.max(this.#startedAt, this.#left.get(podUid) ?? 0, since) + this.#returnMs - now)
  }

  /** The pod's channel as soon as there is one, or undefined once the wait is given up. */
  async arrival(podUid: string, signal: AbortSignal): Promise<Presence | undefined> {
    const present = this.#byPod.get(podUid)
    if (present !== undefined || signal.aborted) return present
    const { promise, resolve } = Promise.withResolvers<Presence | undefined>()
    const waiting = this.#waiting.get(podUid) ?? new Set()
    this.#waiting.set(podUid, waiting.add(resolve))
    const onAbort = () => resolve(undefined)
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      return await promise
    } finally {
      signal.removeEventListener('abort', onAbort)
      waiting.delete(resolve)
      if (waiting.size === 0) this.#waiting.delete(podUid)
    }
  }
}
