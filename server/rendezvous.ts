import type { Nat } from '#shared/nat.ts'
import type { Address, Opening } from '#shared/wire.ts'

/** Whom a NAT lets in on an open port: anyone there (or at the dialled address), or only the very port that was dialled. */
export type Filtering = 'unknown' | 'open' | 'restricted'

/** What is known of how a pod is reached from outside. */
export interface NatKnowledge extends Nat {
  filtering: Filtering
}

/** One side of a rendezvous, as the server sees it. */
export interface Party {
  nat: NatKnowledge
  /** Of its rendezvous connection. */
  localPort: number
  observed: Address
  podIPs: readonly string[]
  /** Of its node. */
  hostIPs: readonly string[]
  roundTripMs: number
}

/** Who dials and who listens. `both`: they dial each other at once, and the one who did not ask listens at the end. */
export type Manner = 'both' | 'dialer-listens' | 'acceptor-listens' | 'hopeless'

type Known = Pick<Party, 'nat'> & { observed: Pick<Address, 'address'> }

/**
 * How two NATs can be crossed. A port that changes with each destination cannot be dialled, so its owner dials, and the
 * other side must let in a port that it does not know; where it does not, or both change, nothing helps. Two pods
 * behind one address may meet on the inside, whatever it does.
 */
export function mannerOf(dialer: Known, acceptor: Known): Manner {
  const [a, b] = [dialer.nat, acceptor.nat]
  if (a.mapping !== 'dependent' && b.mapping !== 'dependent') return 'both'
  if (dialer.observed.address === acceptor.observed.address) return 'both'
  if (a.mapping === b.mapping) return 'hopeless'
  const listener = a.mapping === 'dependent' ? b : a
  if (listener.filtering === 'restricted') return 'hopeless'
  return listener === b ? 'acceptor-listens' : 'dialer-listens'
}

/** Every so many attempts a hopeless pair is tried all the same: what we know of a NAT may be wrong, or old. */
const tryAnywayEvery = 4

export function isWorthTrying(manner: Manner, attempt: number): boolean {
  return manner !== 'hopeless' || attempt % tryAnywayEvery === tryAnywayEvery - 1
}

/** What both sides do; `nonces` are fresh random words. The two start at about the same moment, by their round trips. */
export function openingsOf(
  dialer: Party,
  acceptor: Party,
  nonces: { ask: string; answer: string },
): { dialer: Opening; acceptor: Opening } {
  const between = dialer.roundTripMs + acceptor.roundTripMs
  const windowMs = Math.round(Math.min(4_000, 2_000 + 2 * between))
  const slowest = Math.max(dialer.roundTripMs, acceptor.roundTripMs)
  const manner = mannerOf(dialer, acceptor)
  const listensAtOnce = manner === 'dialer-listens' || manner === 'acceptor-listens'
  const listener = listenerOf(manner, dialer.nat, acceptor.nat)
  // Where both dial, one listens at the end: should we be wrong, it lets in what comes from an unexpected port.
  const listenAfterMs = listensAtOnce ? listenSoonMs : Math.round(windowMs * 0.6)
  const openingOf = (role: Opening['role'], own: Party, peer: Party): Opening => ({
    role,
    candidates: candidatesOf(peer, own),
    startInMs: Math.round((slowest - own.roundTripMs) / 2) + startSlackMs,
    ...(role === listener ? { listenAfterMs } : {}),
    retryMs: Math.round(Math.min(1_000, Math.max(100, 1.5 * between + 20))),
    windowMs,
    ...nonces,
  })
  return { dialer: openingOf('dialer', dialer, acceptor), acceptor: openingOf('acceptor', acceptor, dialer) }
}

function listenerOf(manner: Manner, dialer: Nat, acceptor: Nat): Opening['role'] {
  if (manner === 'dialer-listens') return 'dialer'
  return acceptor.mapping === 'dependent' && dialer.mapping !== 'dependent' ? 'dialer' : 'acceptor'
}

/** Long enough for a SYN to have opened our NAT for the peer's address; in ms. */
const listenSoonMs = 50
/** For the server's own two messages; in ms. */
const startSlackMs = 10

/** Where `peer` may be met by `own`: as the server sees it, at its node, and at its own addresses; nowhere that is us. */
export function candidatesOf(peer: Party, own: Pick<Party, 'podIPs' | 'hostIPs'>): Address[] {
  const inside = [...peer.hostIPs, ...peer.podIPs]
  const all = [peer.observed, ...inside.map((address) => ({ address, port: peer.localPort }))]
  const isOurs = (a: Address) => own.podIPs.includes(a.address) || own.hostIPs.includes(a.address)
  return all.filter(
    (a, i) => !isOurs(a) && all.findIndex((b) => b.address === a.address && b.port === a.port) === i,
  )
}
