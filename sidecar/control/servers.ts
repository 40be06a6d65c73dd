import { createHash } from 'node:crypto'
import type { ServerAddress } from '../config.ts'

/** Servers whose connect times differ by less, in ms, are equally near: then nobody goes to the other one. */
const sameDistanceMs = 20
/** A server that failed or sent us away is tried after all others for so long, in ms. */
const avoidMs = 10_000

interface Known {
  /** How long the last connection took to open, in ms. */
  tookMs: number | undefined
  avoidUntil: number
}

/** What is known of each server, and in which order they are tried. */
export class Servers {
  readonly #servers: readonly ServerAddress[]
  readonly #known = new Map<ServerAddress, Known>()

  /** Pods begin at different servers, each always at the same, so that equal servers get equal shares. */
  constructor(servers: readonly ServerAddress[], podUid: string) {
    this.#servers = spread(servers, podUid)
  }

  get count(): number {
    return this.#servers.length
  }

  opened(server: ServerAddress, tookMs: number): void {
    this.#known.set(server, { tookMs, avoidUntil: 0 })
  }

  /** It failed, or it is going away. */
  avoid(server: ServerAddress, now: number): void {
    this.#known.set(server, { tookMs: this.#known.get(server)?.tookMs, avoidUntil: now + avoidMs })
  }

  /** The nearest first; those that failed lately last. */
  order(now: number): ServerAddress[] {
    const rank = (server: ServerAddress): [number, number] => {
      const { tookMs, avoidUntil = 0 } = this.#known.get(server) ?? {}
      return [avoidUntil > now ? 1 : 0, Math.floor((tookMs ?? 0) / sameDistanceMs)]
    }
    return this.#servers
      .map((server) => ({ server, rank: rank(server) }))
      .sort((a, b) => a.rank[0] - b.rank[0] || a.rank[1] - b.rank[1])
      .map(({ server }) => server)
  }
}

/** Pure: the servers turned round by a number that the pod's uid gives. */
export function spread(servers: readonly ServerAddress[], podUid: string): ServerAddress[] {
  const by = createHash('sha256').update(podUid).digest().readUInt32BE() % Math.max(1, servers.length)
  return [...servers.slice(by), ...servers.slice(0, by)]
}
