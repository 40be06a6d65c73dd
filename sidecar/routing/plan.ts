import type { Endpoint } from '#shared/catalogue.ts'

/** How a connection can reach an endpoint. `local` and `plain` carry no tunnel. */
export type RouteKind = 'local' | 'plain' | TunnelRoute

/** The routes with a tunnel, best first. */
export const tunnelRoutes = ['direct', 'punched', 'relayed'] as const
export type TunnelRoute = (typeof tunnelRoutes)[number]

export interface Step {
  route: RouteKind
  /** How long after the first step it starts, in ms; at once when every earlier step has failed. */
  afterMs: number
  /** Not waited for: its session is for later streams. */
  background?: true
}

/** What the sidecar knows of a peer at the moment of planning. */
export interface PeerKnowledge {
  /** Routes that have a live session which takes one more stream. */
  sessions: ReadonlySet<RouteKind>
  /** Routes that failed lately and rest until this time (ms, monotonic). */
  blockedUntil: Partial<Record<RouteKind, number>>
  /** Whether the server can be asked for a relayed or punched connection now. */
  relayAvailable: boolean
}

/**
 * Head start of the direct route, in ms: within a site it wins well inside it, and where it cannot work an app
 * waits no longer than that once per peer, as the failure is remembered.
 */
export const headStartMs = 150

/** A new peer is not punched to before direct has had its time: within a site that would be in vain, in ms. */
export const punchAfterMs = 2 * headStartMs

/**
 * The ordered routes to an endpoint: new streams go on the best session that lives, or on the first that can be made,
 * and what would be better is tried behind it. An endpoint with a sidecar is reached through a tunnel only, never in the
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
  const rests = (route: TunnelRoute) => (known.blockedUntil[route] ?? now) > now
  // Without the server the relay's step waits for its return, so direct is tried however lately it failed.
  const servedByRelay = known.sessions.has('relayed') || (rests('direct') && known.relayAvailable)
  if (known.sessions.has('direct')) return inTurn(['direct', 'relayed'])
  const probe = reachable && !rests('direct') ? [behind('direct', 0)] : []
  if (known.sessions.has('punched')) return [...inTurn(['punched', 'relayed']), ...probe]
  const punch = (afterMs: number) =>
    known.relayAvailable && !rests('punched') ? [behind('punched', afterMs)] : []
  if (servedByRelay) return [...inTurn(['relayed']), ...probe, ...punch(0)]
  return [...inTurn([...direct, 'relayed']), ...punch(reachable ? punchAfterMs : 0)]
}

function behind(route: TunnelRoute, afterMs: number): Step {
  return { route, afterMs, background: true }
}

function inTurn(routes: RouteKind[]): Step[] {
  return routes.map((route, i) => ({ route, afterMs: i * headStartMs }))
}
