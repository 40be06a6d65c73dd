/** One figure of a case: what is measured, and what its ratio (ours : peer) must at least show. */
export interface Figure {
  metric: string
  unit: string
  better: 'higher' | 'lower'
  /** Bound of the median ratio: a minimum where higher is better, else a maximum. Without one it is for information. */
  least?: number
  aim?: number
}

/** The values of one side in one round, by metric. */
export type Values = Readonly<Record<string, number>>

export interface Round {
  ours: Values
  peer: Values
}

/** The bounded limit of an absolute case, in place of a peer. */
export const limit = 'limit'

export interface Row {
  case: string
  metric: string
  unit: string
  ours: number
  peer: number
  peerName: string
  ratio: { median: number; min: number; max: number }
  least: number | null
  aim: number | null
  /** Null where there is no bound. */
  pass: boolean | null
}

/** Medians over the rounds; ratios are taken within each round, so what slows the machine slows both sides. */
export function summarize(name: string, peerName: string, figure: Figure, rounds: readonly Round[]): Row {
  const { metric, unit, better, least, aim } = figure
  const pairs = rounds.map(({ ours, peer }) => ({
    ours: measured(ours, metric),
    peer: measured(peer, metric),
  }))
  const ratios = pairs.map(({ ours, peer }) => ours / peer)
  const middle = median(ratios)
  return {
    case: name,
    metric,
    unit,
    ours: rounded(median(pairs.map((p) => p.ours))),
    peer: rounded(median(pairs.map((p) => p.peer))),
    peerName,
    ratio: { median: rounded(middle), min: rounded(Math.min(...ratios)), max: rounded(Math.max(...ratios)) },
    least: least ?? null,
    aim: aim ?? null,
    pass: least === undefined ? null : better === 'higher' ? middle >= least : middle <= least,
  }
}

function measured(values: Values, metric: string): number {
  const value = values[metric]
  if (value === undefined) throw new Error(`Cannot summarize ${metric}: it was not measured.`)
  return value
}

/** The middle of the sorted values; of an even number the mean of the two in the middle. NaN of none. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const upper = Math.floor(sorted.length / 2)
  const lower = Math.ceil(sorted.length / 2) - 1
  return ((sorted[lower] ?? Number.NaN) + (sorted[upper] ?? Number.NaN)) / 2
}

/** The value that `share` of all are at most (nearest rank). NaN of none. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? Number.NaN
}

/** Three significant digits are more than a median of rounds can tell. */
function rounded(value: number): number {
  return Number(value.toPrecision(3))
}
