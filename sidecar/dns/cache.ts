import type { Answer } from 'dns-packet'
import type { Reply } from './answer.ts'

const maxEntries = 2_000
/** How long an outdated answer is still of use when no server answers (RFC 8767), in seconds. */
const staleSeconds = 3_600
/** TTL of such an answer. */
const staleTtl = 30
const maxTtl = 86_400
/** Negative answers live no longer than this (RFC 2308 suggests hours; names at the edge come and go). */
const maxNegativeTtl = 300

interface Entry {
  reply: Reply
  storedAt: number
  ttl: number
}

/** Answers of the upstream servers by question. Time is in seconds, from `now`. */
export class AnswerCache {
  readonly #entries = new Map<string, Entry>()
  readonly #now: () => number

  constructor(now: () => number = () => performance.now() / 1_000) {
    this.#now = now
  }

  get size(): number {
    return this.#entries.size
  }

  /** A fresh answer with what is left of its TTLs. */
  get(key: string): Reply | undefined {
    const entry = this.#entries.get(key)
    const age = entry === undefined ? 0 : this.#now() - entry.storedAt
    if (entry === undefined || age >= entry.ttl) return undefined
    const elapsed = Math.floor(age)
    return withTtl(entry.reply, (ttl) => Math.max(1, Math.min(ttl, entry.ttl) - elapsed))
  }

  /** An outdated answer, for when there is nothing better. */
  stale(key: string): Reply | undefined {
    const entry = this.#entries.get(key)
    if (entry === undefined || this.#now() - entry.storedAt > entry.ttl + staleSeconds) return undefined
    return withTtl(entry.reply, () => staleTtl)
  }

  put(key: string, reply: Reply): void {
    const ttl = lifetimeOf(reply)
    if (ttl <= 0) return
    this.#entries.delete(key)
    this.#entries.set(key, { reply, storedAt: this.#now(), ttl })
    if (this.#entries.size > maxEntries) this.#entries.delete(this.#entries.keys().next().value ?? '')
  }
}

/** How long a reply may be kept, in seconds; 0 for one that says nothing lasting. */
export function lifetimeOf(reply: Reply): number {
  const ttls = reply.answers.map(ttlOf)
  if (reply.rcode === 'NOERROR' && ttls.length > 0) return Math.min(maxTtl, ...ttls)
  if (reply.rcode !== 'NOERROR' && reply.rcode !== 'NXDOMAIN') return 0
  const soa = reply.authorities.find((a) => a.type === 'SOA')
  if (soa?.type !== 'SOA') return 0
  return Math.min(maxNegativeTtl, ttlOf(soa), soa.data.minimum ?? 0)
}

function ttlOf(record: Answer): number {
  return 'ttl' in record && typeof record.ttl === 'number' ? record.ttl : 0
}

function withTtl(reply: Reply, ttl: (of: number) => number): Reply {
  const change = (records: Answer[]) => records.map((r) => ({ ...r, ttl: ttl(ttlOf(r)) }) as Answer)
  return {
    rcode: reply.rcode,
    answers: change(reply.answers),
    authorities: change(reply.authorities),
    additionals: change(reply.additionals),
  }
}
