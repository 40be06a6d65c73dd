import type { Lane } from './lane.ts'
import { laneRoutes } from './messages.ts'

/** Streams of one lane; the acceptor refuses more, on all lanes of a peer together. */
export const maxStreams = 2_048
/** Where lanes take a route that is not the best, one connection in so many ms goes by the main thread, which looks for a better one. */
const lookEveryMs = 1_000

interface Group {
  /** The best route first. */
  lanes: Lane[]
  lookedMs: number
}

/** The lanes that lead to peers, by pod uid. */
export class LaneGroups {
  readonly #groups = new Map<string, Group>()

  add(lane: Lane): void {
    const group = this.#groups.get(lane.peer) ?? { lanes: [], lookedMs: performance.now() }
    this.#groups.set(lane.peer, group)
    group.lanes.push(lane)
    group.lanes.sort((a, b) => laneRoutes.indexOf(a.route) - laneRoutes.indexOf(b.route))
  }

  delete(lane: Lane): void {
    const group = this.#groups.get(lane.peer)
    if (group === undefined) return
    group.lanes = group.lanes.filter((l) => l !== lane)
    if (group.lanes.length === 0) this.#groups.delete(lane.peer)
  }

  /** The lane for a new stream; undefined when the main thread is to carry it. */
  pick(peer: string): Lane | undefined {
    const group = this.#groups.get(peer)
    const lane = group?.lanes.find((l) => l.users.size < maxStreams && !l.pulse.isDoubted)
    if (group === undefined || lane === undefined || lane.route === 'direct') return lane
    const now = performance.now()
    if (now - group.lookedMs < lookEveryMs) return lane
    group.lookedMs = now
    return undefined
  }
}
