import { fullJitter } from '#shared/lifecycle.ts'
import type { TunnelRoute } from './plan.ts'

/** What failed rests between half of the base and one and a half of it, doubling up to the cap; in ms. */
export interface Rests {
  baseMs: number
  maxMs: number
}

const routeRests: Rests = { baseMs: 5_000, maxMs: 5 * 60_000 }
/** Peers remembered; the least recently used go first. */
const maxPeers = 5_000

/** A session that ends younger than this counts as a failure of its route: else a shaky path would flap. In ms. */
export const steadyMs = 60_000

interface Memory {
  failures: number
  /** 0: it does not rest. */
  until: number
}

/** What went wrong lately with routes to peers, so that a dead route costs an app its head start only once. */
export class PeerMemory {
  readonly #peers = new Map<string, Partial<Record<TunnelRoute, Memory>>>()
  readonly #random: () => number
  readonly #rests: Rests

  constructor(random: () => number = Math.random, rests = routeRests) {
    this.#random = random
    this.#rests = rests
  }

  blockedUntil(podUid: string): Partial<Record<TunnelRoute, number>> {
    const routes = this.#peers.get(podUid) ?? {}
    const resting = Object.entries(routes).filter(([, m]) => m.until > 0)
    return Object.fromEntries(resting.map(([route, m]) => [route, m.until]))
  }

  /** Failures of the route in a row; a success ends the rest, but the row only once its session has proved steady. */
  failures(podUid: string, route: TunnelRoute): number {
    return this.#peers.get(podUid)?.[route]?.failures ?? 0
  }

  failed(podUid: string, route: TunnelRoute, now: number): void {
    const routes = this.#peers.get(podUid) ?? {}
    const failures = (routes[route]?.failures ?? 0) + 1
    const { baseMs, maxMs } = this.#rests
    const rest = baseMs / 2 + fullJitter(failures - 1, baseMs, maxMs, this.#random)
    routes[route] = { failures, until: now + rest }
    this.#peers.delete(podUid)
    this.#peers.set(podUid, routes)
    if (this.#peers.size > maxPeers) this.#peers.delete(this.#peers.keys().next().value ?? '')
  }

  succeeded(podUid: string, route: TunnelRoute): void {
    const memory = this.#peers.get(podUid)?.[route]
    if (memory !== undefined) memory.until = 0
  }

  /** A session of the route has ended after that long. */
  ended(podUid: string, route: TunnelRoute, livedMs: number, now: number): void {
    if (livedMs < steadyMs) this.failed(podUid, route, now)
    else delete this.#peers.get(podUid)?.[route]
  }
}
