import { isDeepStrictEqual } from 'node:util'
import type { Endpoint } from '#shared/catalogue.ts'
import type { ErrorCode } from '#shared/errors.ts'
import { fullJitter } from '#shared/lifecycle.ts'

/** An endpoint that failed rests between half of this and all of it, doubling up to the cap; in ms. */
const baseRestMs = 2_000
const maxRestMs = 60_000
/**
 * One that does not answer within its head start, or is tried again after its rest, is left to one connection for so
 * long, in ms; twice as long each time that it is slow again, up to what a connection has in all.
 */
const doubtMs = 1_000
const maxDoubtMs = 15_000
/** Endpoints remembered; the least recently used go first. */
const maxRecords = 10_000

/**
 * Failures that say nothing of the endpoint: a policy, a bound, our own missing certificate, a service that nobody
 * serves. Everything else is an endpoint that cannot be reached now, and so is what we have no name for.
 */
const innocent: ReadonlySet<string> = new Set<ErrorCode>([
  'forbidden',
  'limit',
  'unauthenticated',
  'no-endpoint',
  'bad-message',
  'bad-config',
  'not-connected',
])

export function blamesEndpoint(code: string): boolean {
  return !innocent.has(code)
}

export function healthKey(endpoint: string, port: number): string {
  return `${endpoint} ${port}`
}

/**
 * Those that are not ejected. At least half of the candidates (rounded down, and one) stay in use, or the rest would
 * be given all the load: the ejected ones that are due first. Where all are ejected nothing tells them apart, and all
 * are used.
 */
export function available<T>(
  candidates: readonly T[],
  restsUntil: (candidate: T) => number,
  now: number,
): T[] {
  const out = candidates.filter((c) => restsUntil(c) > now)
  if (out.length === 0 || out.length === candidates.length) return [...candidates]
  const floor = Math.max(1, Math.floor(candidates.length / 2))
  const missing = floor - (candidates.length - out.length)
  const back = out.sort((a, b) => restsUntil(a) - restsUntil(b)).slice(0, Math.max(0, missing))
  return candidates.filter((c) => restsUntil(c) <= now || back.includes(c))
}

interface Condition {
  failures: number
  /** When the last failure was, in ms. */
  failedAt: number
  /** How often it was slow. */
  doubts: number
  until: number
}

const good: Condition = { failures: 0, failedAt: Number.NEGATIVE_INFINITY, doubts: 0, until: 0 }

/** Which endpoints (pod and port) could not be reached lately, so that connections keep off them. */
export class EndpointHealth {
  readonly #conditions = new Map<string, Condition>()
  readonly #now: () => number
  readonly #random: () => number

  constructor(now: () => number = () => performance.now(), random: () => number = Math.random) {
    this.#now = now
    this.#random = random
  }

  /** Endpoints that are ejected now. */
  get ejected(): number {
    const now = this.#now()
    return [...this.#conditions.values()].filter((c) => c.failures > 0 && c.until > now).length
  }

  restsUntil(key: string): number {
    return this.#conditions.get(key)?.until ?? Number.NEGATIVE_INFINITY
  }

  /** An attempt begins: an endpoint that has failed is tried by one connection at a time. Returns when, for `failed`. */
  trying(key: string): number {
    const now = this.#now()
    const known = this.#conditions.get(key)
    if (known !== undefined) known.until = Math.max(known.until, now + doubtMs)
    return now
  }

  /** An attempt takes longer than its head start: others keep off, the longer the oftener that was so. */
  slow(key: string): void {
    const known = this.#conditions.get(key) ?? good
    const forMs = Math.min(maxDoubtMs, doubtMs * 2 ** known.doubts)
    this.#set(key, { ...known, doubts: known.doubts + 1, until: Math.max(known.until, this.#now() + forMs) })
  }

  /** An attempt that began before the last failure was known says nothing new. */
  failed(key: string, beganMs: number): void {
    const known = this.#conditions.get(key) ?? good
    if (beganMs < known.failedAt) return
    const [failedAt, failures] = [this.#now(), known.failures + 1]
    const rest = baseRestMs / 2 + fullJitter(failures - 1, baseRestMs, maxRestMs, this.#random)
    this.#set(key, { ...known, failures, failedAt, until: failedAt + rest })
  }

  succeeded(key: string): void {
    this.#conditions.delete(key)
  }

  /** An endpoint that was changed, or has gone, starts anew. Both are lists of one service. */
  changed(
    before: readonly Endpoint[],
    after: readonly Endpoint[],
    keyOf: (endpoint: Endpoint) => string,
  ): void {
    if (this.#conditions.size === 0) return
    const next = new Map(after.map((e) => [keyOf(e), e]))
    for (const endpoint of before) {
      const key = keyOf(endpoint)
      if (isDeepStrictEqual(next.get(key), endpoint)) continue
      for (const port of Object.values(endpoint.ports)) this.#conditions.delete(healthKey(key, port))
    }
  }

  #set(key: string, condition: Condition): void {
    this.#conditions.delete(key)
    this.#conditions.set(key, condition)
    if (this.#conditions.size > maxRecords)
      this.#conditions.delete(this.#conditions.keys().next().value ?? '')
  }
}
