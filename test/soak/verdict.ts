/** What the figures of a soak mean. Pure. */

/** One process at one moment. */
export interface Sample {
  atMs: number
  rssKb: number
  anonymousKb: number
  fds: number
  /** Of a sidecar its sessions to peers, of a server its control channels. */
  sessions: number
  /** Carried connections; of a server its relayed pairs and joins that it passes on. */
  connections: number
  pump: number
}

/** All of one process: at rest before the traffic, while it runs, and at rest after it. */
export interface Series {
  part: string
  before: Sample
  during: readonly Sample[]
  after: Sample
}

export interface Row {
  part: string
  figure: 'rss' | 'anonymous' | 'fds' | 'sessions' | 'connections' | 'pump'
  unit: string
  before: number
  /** Medians of the first, middle and last tenth while traffic ran. */
  first: number
  middle: number
  last: number
  after: number
  /** Per minute, once warm. */
  slope: number
  /** What is wrong; undefined when all is well. */
  wrong: string | undefined
}

export interface Bounds {
  /** Growth of memory once warm, in kB per minute. */
  kbPerMinute: number
  /** Growth of a count (descriptors, sessions, connections) while the same traffic goes on, per minute. */
  perMinute: number
  /** Descriptors that may be there afterwards and were not before: a listening worker, a log that was opened anew. */
  fds: number
}

/** Below that, in kB in a whole run, the collector of V8 decides what a slope is, and not what is kept. */
const noiseKb = 3_000
const flatKbPerMinute = 300
/** And so many connections more or less are a matter of the moment at which they were counted. */
const noiseCount = 20
const flatPerMinute = 2

/** The bound for a run: a leak of 300 kB a minute is seen by a run of ten minutes, a shorter one sees larger leaks. */
export function boundsFor(minutes: number): Bounds {
  return {
    kbPerMinute: Math.max(flatKbPerMinute, noiseKb / minutes),
    perMinute: Math.max(flatPerMinute, noiseCount / minutes),
    fds: 4,
  }
}

/**
 * How much it grows all the time, per minute, once warm: the least of the slopes of the whole and of its two halves. What
 * is kept for ever makes all three grow; an allocator that needed more once, and keeps it, makes a step in one of them.
 */
export function growthOf(points: readonly { atMs: number; value: number }[]): number {
  const warm = warmPartOf(points)
  const half = Math.floor(warm.length / 2)
  return Math.min(...[warm, warm.slice(0, half), warm.slice(-half)].map(theilSen))
}

/**
 * The slope per minute of the last two thirds, by Theil and Sen: the median of the slopes between all pairs, which no
 * single peak moves. 0 of fewer than two moments.
 */
export function slopeOf(points: readonly { atMs: number; value: number }[]): number {
  return theilSen(warmPartOf(points))
}

function warmPartOf<T>(points: readonly T[]): readonly T[] {
  return points.slice(Math.floor(points.length / 3))
}

function theilSen(points: readonly { atMs: number; value: number }[]): number {
  const slopes = points.flatMap((a, i) =>
    points
      .slice(i + 1)
      .flatMap((b) => (b.atMs === a.atMs ? [] : [((b.value - a.value) / (b.atMs - a.atMs)) * 60_000])),
  )
  return slopes.length === 0 ? 0 : median(slopes)
}

/** Medians of the first, middle and last tenth (one moment at least). */
export function thirdsOf(values: readonly number[]): { first: number; middle: number; last: number } {
  const width = Math.max(1, Math.floor(values.length / 10))
  const from = Math.floor((values.length - width) / 2)
  return {
    first: median(values.slice(0, width)),
    middle: median(values.slice(from, from + width)),
    last: median(values.slice(-width)),
  }
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const upper = Math.floor(sorted.length / 2)
  const lower = Math.ceil(sorted.length / 2) - 1
  return ((sorted[lower] ?? Number.NaN) + (sorted[upper] ?? Number.NaN)) / 2
}

const figures = [
  ['rss', 'kB', 'rssKb'],
  ['anonymous', 'kB', 'anonymousKb'],
  ['fds', '', 'fds'],
  ['sessions', '', 'sessions'],
  ['connections', '', 'connections'],
  ['pump', '', 'pump'],
] as const

export function judge({ part, before, during, after }: Series, bounds: Bounds): Row[] {
  return figures.map(([figure, unit, key]) => {
    const points = during.map((s) => ({ atMs: s.atMs, value: s[key] }))
    const row = { part, figure, unit, before: before[key], after: after[key], slope: slopeOf(points) }
    const wrong = wrongWith({ ...row, growth: growthOf(points) }, bounds)
    return { ...row, ...thirdsOf(during.map((s) => s[key])), wrong }
  })
}

function wrongWith(
  { figure, before, after, growth }: Pick<Row, 'figure' | 'before' | 'after'> & { growth: number },
  bounds: Bounds,
) {
  if (figure === 'rss' || figure === 'anonymous')
    return growth > bounds.kbPerMinute
      ? `grows by more than ${Math.round(bounds.kbPerMinute)} kB/min`
      : undefined
  if (growth > bounds.perMinute) return `adds up: ${growth.toFixed(1)} more each minute`
  const allowed = before + (figure === 'fds' ? bounds.fds : 0)
  return after > allowed ? `${after} left, there were ${before}` : undefined
}

/** Whether nothing is carried any more, and no more open than before. */
export function isAtRest(now: Sample, before: Sample | undefined, bounds: Bounds): boolean {
  if (before === undefined) return now.connections === 0 && now.pump === 0
  return judge({ part: '', before, during: [], after: now }, bounds).every((row) => row.wrong === undefined)
}

/** What one load has done. */
export interface Traffic {
  good: Record<string, number>
  failed: number
  failures: string[]
}

/** Everything that fails the soak, as sentences. */
export function verdict(
  rows: readonly Row[],
  traffic: ReadonlyMap<string, Traffic>,
  routes: Readonly<Record<string, number>>,
): string[] {
  const grown = rows.flatMap((r) => (r.wrong === undefined ? [] : [`${r.part}: ${r.figure}: ${r.wrong}`]))
  const failed = [...traffic].flatMap(([name, { failed: count, failures }]) =>
    count === 0 ? [] : [`${name}: ${count} failed, as: ${failures[0] ?? ''}`],
  )
  const idle = [...traffic].flatMap(([name, { good }]) =>
    Object.values(good).reduce((sum, n) => sum + n, 0) === 0 ? [`${name}: nothing was done`] : [],
  )
  const missing = ['direct', 'punched', 'relayed'].filter((route) => !(Number(routes[route]) > 0))
  return [...grown, ...failed, ...idle, ...missing.map((route) => `nothing went by the route ${route}`)]
}
