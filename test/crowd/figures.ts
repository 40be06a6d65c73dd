import { median, quantile } from '../bench/figures.ts'

/** What one sidecar of the crowd got. */
export interface Member {
  dialled: number
  served: number
  latenciesMs: number[]
  failures: string[]
}

/** One replica of the server at one moment. */
export interface Moment {
  rssMb: number
  fds: number
  channels: number
  pairs: number
  /** Longest pause of its event loop since the moment before, in ms. */
  pauseMs: number
}

export interface Replica {
  name: string
  /** With nobody connected, with all, at the worst of each figure, and when the dials are over. */
  empty: Moment
  joined: Moment
  worst: Moment
  after: Moment
}

export interface Crowd {
  dials: number
  perSecond: number
  failed: number
  failures: string[]
  /** Dials that each sidecar got through. */
  share: { min: number; median: number; max: number; jain: number }
  latencyMs: { median: number; p99: number; max: number; slowestMedian: number }
}

export const bounds = { jain: 0.9, rssMb: 250, fds: 10_000, fdsLeft: 16, pauseMs: 1_000 }

/** Jain's index: 1 when all got the same, 1/n when one got all. 0 when nobody got anything. */
export function jain(shares: readonly number[]): number {
  const sum = shares.reduce((a, b) => a + b, 0)
  const squares = shares.reduce((a, b) => a + b * b, 0)
  return squares === 0 ? 0 : (sum * sum) / (shares.length * squares)
}

export function summarize(members: readonly Member[], seconds: number): Crowd {
  const dialled = members.map((m) => m.dialled)
  const latencies = members.flatMap((m) => m.latenciesMs)
  const failures = members.flatMap((m) => m.failures)
  const dials = dialled.reduce((a, b) => a + b, 0)
  return {
    dials,
    perSecond: Math.round(dials / seconds),
    failed: failures.length,
    failures: [...new Set(failures)].slice(0, 10),
    share: {
      min: quantile(dialled, 0),
      median: median(dialled),
      max: quantile(dialled, 1),
      jain: jain(dialled),
    },
    latencyMs: {
      median: median(latencies),
      p99: quantile(latencies, 0.99),
      max: quantile(latencies, 1),
      slowestMedian: quantile(
        members.map((m) => median(m.latenciesMs)),
        1,
      ),
    },
  }
}

/** The worst of each figure of some moments. */
export function worstOf(moments: readonly Moment[]): Moment {
  const most = (key: keyof Moment) => Math.max(...moments.map((m) => m[key]))
  return {
    rssMb: most('rssMb'),
    fds: most('fds'),
    channels: most('channels'),
    pairs: most('pairs'),
    pauseMs: most('pauseMs'),
  }
}

/** Everything that is wrong, as sentences. */
export function wrongWith(crowd: Crowd, replicas: readonly Replica[]): string[] {
  const wrong: string[] = []
  if (crowd.failed > 0) wrong.push(`${crowd.failed} dials failed, as: ${crowd.failures[0]}`)
  if (crowd.share.min === 0) wrong.push('a sidecar got nothing')
  if (crowd.share.jain < bounds.jain) wrong.push(`unfair: Jain's index is ${crowd.share.jain.toFixed(3)}`)
  for (const { name, joined, worst, after } of replicas) {
    if (worst.rssMb > bounds.rssMb) wrong.push(`${name} took ${Math.round(worst.rssMb)} MB`)
    if (worst.fds > bounds.fds) wrong.push(`${name} took ${worst.fds} descriptors`)
    if (worst.pauseMs > bounds.pauseMs)
      wrong.push(`the event loop of ${name} paused ${Math.round(worst.pauseMs)} ms`)
    if (after.pairs > 0) wrong.push(`${name} has ${after.pairs} pairs left`)
    if (after.fds > joined.fds + bounds.fdsLeft)
      wrong.push(`${name} has ${after.fds - joined.fds} descriptors left`)
  }
  return wrong
}
