/** The least and the most that a session may take to answer a ping, in ms. */
const least = 2_000
const most = 5_000
/** Over a bad network a lost packet is sent again after some round trips, and then after twice as long. */
const roundTrips = 8
/** Taken for a session that has not answered a ping yet. */
const assumedMs = 500

/**
 * How long a session may be silent after a ping before it counts as dead, in ms. `roundTripMs` is how long pings took
 * lately; they wait behind bulk.
 */
export function patienceMs(roundTripMs: number | undefined): number {
  return Math.min(most, Math.max(least, roundTrips * (roundTripMs ?? assumedMs)))
}

/** What to take for the round trip after one more ping: the longest of late, forgotten by and by. */
export function roundTripAfter(before: number | undefined, tookMs: number): number {
  return Math.max(tookMs, (before ?? 0) * 0.8)
}
