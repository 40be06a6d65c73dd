/** What the traffic of a chaos case means. Pure. Times are in ms of one clock that no case changes. */

export interface Ended {
  route: string
  startedAt: number
  endedAt: number
  /**
   * `good`: every byte came back, and a FIN each way. `reset`: it ended by an error, as an app sees that something failed.
   * `truncated`: it ended with a FIN before all had come, so that an app would take a part for the whole.
   * `corrupt`: a wrong byte. `stuck`: it neither ended nor brought a byte for 15 s.
   */
  how: 'good' | 'reset' | 'truncated' | 'corrupt' | 'stuck'
  why: string
}

export interface LoadReport {
  /** New connections of some kilobytes. */
  fresh: Ended[]
  /** Connections that were to last for the whole case; another follows each that ends. */
  long: Ended[]
  /** That came back and were compared. */
  bytes: number
}

export interface Rules {
  /** Whether new connections may fail (with a reset) while the fault lasts. */
  mayFail: boolean
  /** Whether an app may see a FIN for a reset: its own sidecar was killed, and what the kernel then sends is a FIN. */
  mayTruncate: boolean
}

export interface Facts {
  report: LoadReport
  /** When the fault began to be mended; where the mesh must recover by itself, when it began. */
  mendedAt: number
  /** Connections that sidecars still held when all traffic had ended for 15 s. */
  leftOver: number
}

export interface Verdict {
  /** From `mendedAt` until new connections work again on every route, for good; null where they do not. */
  recoveryMs: number | null
  connections: number
  failed: number
  longConnections: number
  longEnded: number
  megabytes: number
  /** Why the case failed; none: it passed. */
  reasons: string[]
}

/** How long the mesh may take until new connections work again, in ms. */
const recoverWithinMs = 15_000

export function judge({ report, mendedAt, leftOver }: Facts, rules: Rules): Verdict {
  const { fresh, long, bytes } = report
  const all = [...fresh, ...long]
  const failed = fresh.filter((c) => c.how !== 'good')
  const recoveryMs = recovery(fresh, mendedAt)
  const reasons: string[] = []
  const because = (what: string, ones: readonly Ended[]) => {
    const [first] = ones
    if (first !== undefined) reasons.push(`${ones.length} ${what}, as by ${first.route}: ${first.why}`)
  }
  because(
    'corrupt',
    all.filter((c) => c.how === 'corrupt'),
  )
  if (!rules.mayTruncate)
    because(
      'truncated',
      all.filter((c) => c.how === 'truncated'),
    )
  because(
    'stuck',
    all.filter((c) => c.how === 'stuck'),
  )
  if (!rules.mayFail) because('new connections failed', failed)
  if (recoveryMs === null) reasons.push('new connections do not work again')
  else if (recoveryMs > recoverWithinMs)
    reasons.push(`new connections work again after ${recoveryMs} ms only`)
  if (leftOver > 0) reasons.push(`${leftOver} connections left over in sidecars`)
  return {
    recoveryMs,
    connections: fresh.length,
    failed: failed.length,
    longConnections: long.length,
    longEnded: long.filter((c) => c.how !== 'good').length,
    megabytes: Math.round(bytes / 1e6),
    reasons,
  }
}

/** The slowest route's time until the first good connection that began after its last bad one. */
function recovery(fresh: readonly Ended[], mendedAt: number): number | null {
  let slowest = 0
  for (const route of new Set(fresh.map((c) => c.route))) {
    const since = fresh.filter((c) => c.route === route && c.startedAt >= mendedAt)
    const lastBad = Math.max(0, ...since.filter((c) => c.how !== 'good').map((c) => c.startedAt))
    const good = since.filter((c) => c.how === 'good' && c.startedAt > lastBad)
    if (good.length === 0) return null
    slowest = Math.max(slowest, Math.min(...good.map((c) => c.endedAt)) - mendedAt)
  }
  return slowest
}
