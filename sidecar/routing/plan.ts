import type { Endpoint } from '#shared/catalogue.ts'

/** How a connection can reach an endpoint. `local` and `plain` carry no tunnel. */
export type RouteKind = 'local' | 'plain' | 'direct' | 'relayed'

export interface Step {
  route: RouteKind
  /** How long after the first step it starts, in ms; at once when every earlier step has failed. */
  afterMs: number
  /** Not waited for: its session is for later streams. */
  background?: true
}

/** What the sidecar knows of a peer at the moment of planning. */
export interface PeerKnowledge {
  /** Routes that have a live session. */
  sessions: ReadonlySet<RouteKind>
  /** Routes that failed lately and rest until this time (ms, monotonic). */
  blockedUntil: Partial<Record<RouteKind, number>>
  /** Whether the server can be asked for a relayed connection now. */
  relayAvailable: boolean
}

/**
 * Head start of the direct route, in ms: within a site it wins well inside it, and where it cannot work an app
 * waits no longer than that once per peer, as the failure is remembered.
 */
export const headStartMs = 150

/**
 * The ordered routes to an endpoint. An endpoint with a sidecar is reached through a tunnel only, never in the
 * clear; a pod that dials itself needs no tunnel.
 */
export function plan(
  endpoint: Pick<Endpoint, 'podUid' | 'sidecar' | 'addresses'>,
  self: { podUid: string; podIPs: readonly string[] },
  known: PeerKnowledge,
  now: number,
): Step[] {
  if (endpoint.podUid === self.podUid) return [{ route: 'local', afterMs: 0 }]
  if (!endpoint.sidecar || endpoint.podUid === undefined) return [{ route: 'plain', afterMs: 0 }]
  // An address that is also ours leads to ourselves: the same pod IP exists at another site.
  const reachable = endpoint.addresses.some((a) => !self.podIPs.includes(a))
  const direct: RouteKind[] = reachable ? ['direct'] : []
  const rests = (known.blockedUntil.direct ?? now) > now
  // Without the server the relay's step waits for its return, so direct is tried however lately it failed.
  const servedByRelay = known.sessions.has('relayed') || (rests && known.relayAvailable)
  if (known.sessions.has('direct') || !servedByRelay) return inTurn([...direct, 'relayed'])
  const probe =
    reachable && !rests ? [{ route: 'direct' as const, afterMs: 0, background: true as const }] : []
  return [...inTurn(['relayed']), ...probe]
}

function inTurn(routes: RouteKind[]): Step[] {
  return routes.map((route, i) => ({ route, afterMs: i * headStartMs }))
}
