/** How long one may be silent: so many round trips, within bounds. Times are in ms. */
export interface Patience {
  leastMs: number
  mostMs: number
  roundTrips: number
  /** Taken for the round trip of who has not answered a ping yet. */
  assumedMs: number
}

/** Of a session: over a bad network a lost packet is sent again after some round trips, and then after twice as long. */
const sessionPatience: Patience = { leastMs: 2_000, mostMs: 5_000, roundTrips: 8, assumedMs: 500 }

/**
 * How long a session may be silent after a ping before it counts as dead, in ms. `roundTripMs` is how long pings took
 * lately; they wait behind bulk.
 */
export function patienceMs(
  roundTripMs: number | undefined,
  { leastMs, mostMs, roundTrips, assumedMs } = sessionPatience,
): number {
  return Math.min(mostMs, Math.max(leastMs, roundTrips * (roundTripMs ?? assumedMs)))
}

/** What to take for the round trip after one more ping: the longest of late, forgotten by and by. */
export function roundTripAfter(before: number | undefined, tookMs: number): number {
  return Math.max(tookMs, (before ?? 0) * 0.8)
}
