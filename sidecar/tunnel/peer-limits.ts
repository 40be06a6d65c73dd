import { TokenBucket } from '#shared/token-bucket.ts'
import { Shares } from '../shares.ts'
import { ByteBudget } from './byte-budget.ts'
import { sessionWindow, streamWindow } from './windows.ts'

const mib = 1024 * 1024

/** What one peer may take of a tunnel endpoint, so that a hostile or broken one harms only itself. */
export const peerLimits = {
  /** Connections that have not shown a certificate yet: in all, and of one address, or of one peer by the relay. */
  unproven: 1_024,
  unprovenOfOne: 128,
  sessions: 2_000,
  /** Enough for all its streams, and as much again while others retire. */
  sessionsOfPeer: 32,
  streamsOfPeer: 2_000,
  /** New streams of a peer's sessions, in a second and at once: what is more than a few goes by lanes. Each costs half a millisecond. */
  newStreams: { perSecond: 2_000, burst: 4_000 },
  /** Streams that it was refused for that: it does not listen, so its sessions end. */
  excess: { perSecond: 200, burst: 2_000 },
  /** Streams that it opens and resets before they are answered: nobody else has so many apps that give up. */
  givenUp: { perSecond: 100, burst: 1_000 },
  /** Of the pump's connections. */
  sidesOfPeer: 128,
  /** What apps have sent and the peer does not read. */
  unreadByPeer: 32 * mib,
  /** Sessions with the whole window; what a peer has sent and no app reads is thereby at most 59 MiB. */
  wideSessions: 4,
}

type Rate = (typeof peerLimits)['newStreams' | 'excess' | 'givenUp']
type Rates = Record<'opened' | 'excess' | 'givenUp', TokenBucket>

/** A window of a session that is not one of the first. It must exceed that of a stream (see windows). */
const narrowWindow = streamWindow + mib / 4

/** Who holds what, of all peers of the tunnel endpoint. A peer is its pod uid, as its certificate says. */
export class PeerLimits {
  readonly unproven = new Shares(peerLimits.unprovenOfOne, peerLimits.unproven)
  readonly sessions = new Shares(peerLimits.sessionsOfPeer, peerLimits.sessions)
  readonly streams = new Shares(peerLimits.streamsOfPeer)
  readonly sides = new Shares(peerLimits.sidesOfPeer)
  readonly #budgets = new Map<string, ByteBudget>()
  readonly #rates = new Map<string, Rates>()

  /** How much may be on its way in the session that the peer has opened last, in bytes. */
  windowOf(podUid: string): number {
    return this.sessions.of(podUid) <= peerLimits.wideSessions ? sessionWindow : narrowWindow
  }

  /** Whether the peer may open one more stream now; `abuse` when it has been refused far too many. */
  mayOpen(podUid: string, now = performance.now()): boolean | 'abuse' {
    const { opened, excess } = this.#ratesOf(podUid, now)
    if (opened.take(now)) return true
    return excess.take(now) ? false : 'abuse'
  }

  /** Whether the peer may give one more stream up now that was not answered yet. */
  mayGiveUp(podUid: string, now = performance.now()): boolean {
    return this.#ratesOf(podUid, now).givenUp.take(now)
  }

  #ratesOf(podUid: string, now: number): Rates {
    const bucket = ({ burst, perSecond }: Rate) => new TokenBucket(burst, perSecond, now)
    const { newStreams, excess, givenUp } = peerLimits
    const rates = this.#rates.get(podUid) ?? {
      opened: bucket(newStreams),
      excess: bucket(excess),
      givenUp: bucket(givenUp),
    }
    this.#rates.set(podUid, rates) // a peer that comes back is the same
    for (const oldest of this.#rates.keys()) {
      if (this.#rates.size <= 2 * peerLimits.sessions) break
      this.#rates.delete(oldest)
    }
    return rates
  }

  /** What is held of one peer. */
  budgetOf(podUid: string): ByteBudget {
    const budget = this.#budgets.get(podUid) ?? new ByteBudget(peerLimits.unreadByPeer)
    this.#budgets.set(podUid, budget)
    return budget
  }

  /** A session of the peer is over. */
  forget(podUid: string): void {
    if (this.sessions.of(podUid) === 0) this.#budgets.delete(podUid)
  }
}
