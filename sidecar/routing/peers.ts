import { fullJitter } from '#shared/lifecycle.ts'
import type { RouteKind } from './plan.ts'

/** A route that failed rests between half of this and all of it, doubling up to the cap; in ms. */
const baseRestMs = 5_000
const maxRestMs = 5 * 60_000
/** Peers remembered; the least recently used go first. */
const maxPeers = 5_000

interface Memory {
  failures: number
  until: number
}

/** What went wrong lately with routes to peers, so that a dead route costs an app its head start only once. */
export class PeerMemory {
  readonly #peers = new Map<string, Partial<Record<RouteKind, Memory>>>()
  readonly #random: () => number

  constructor(random: () => number = Math.random) {
    this.#random = random
  }

  blockedUntil(podUid: string): Partial<Record<RouteKind, number>> {
    const routes = this.#peers.get(podUid) ?? {}
    return Object.fromEntries(Object.entries(routes).map(([route, m]) => [route, m.until]))
  }

  failed(podUid: string, route: RouteKind, now: number): void {
    const routes = this.#peers.get(podUid) ?? {}
    const failures = (routes[route]?.failures ?? 0) + 1
    const rest = baseRestMs / 2 + fullJitter(failures - 1, baseRestMs, maxRestMs, this.#random)
    routes[route] = { failures, until: now + rest }
    this.#peers.delete(podUid)
    this.#peers.set(podUid, routes)
    if (this.#peers.size > maxPeers) this.#peers.delete(this.#peers.keys().next().value ?? '')
  }

  succeeded(podUid: string, route: RouteKind): void {
    const routes = this.#peers.get(podUid)
    if (routes !== undefined) delete routes[route]
  }
}
