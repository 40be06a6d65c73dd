import { createInterface } from 'node:readline'
import type { Lab } from '../lab/lab.ts'
import { isNatKind, type NatKind, natKinds } from '../lab/nat.ts'
import type { NatSite } from '../lab/topology.ts'
import { accessLine } from './story.ts'

export type NatPair = readonly [NatKind, NatKind]

/** What was seen between two sites. */
export interface NatResult {
  a: NatKind
  b: NatKind
  /** The best that a connection took. */
  route: string
  /** Every connection brought back what was sent. */
  echoed: boolean
  /** From the very first dial to its first byte; null when none came. */
  firstMs: number | null
  /** From the first dial to the first one that took `route`; null when it stayed on the relay. */
  upgradedMs: number | null
}

export interface Attempt {
  startMs: number
  firstByteMs: number | null
  echoed: boolean
  route: string
}

const mapped = natKinds.filter((kind) => kind !== 'none')
const paceMs = 150
const watchedSeconds = 5
/** From worst to best. */
const order = ['none', 'relayed', 'punched', 'direct']

/** `all` or two kinds with a comma. */
export function parsePairs(text: string): NatPair[] {
  if (text === 'all') return mapped.flatMap((a) => mapped.map((b) => [a, b] as const))
  const [a = '', b = '', ...more] = text.split(',')
  if (isNatKind(a) && isNatKind(b) && more.length === 0) return [[a, b]]
  throw new Error(
    `Cannot show NATs "${text}": --nat takes all, or two of ${natKinds.join(', ')}, as in full,symmetric.`,
  )
}

/** A site for each kind on each side, so that all pairs are of one mesh, and none is made twice. */
export function sitesOf(pairs: readonly NatPair[]): NatSite[] {
  const side = (name: 'a' | 'b', kinds: NatKind[]) =>
    [...new Set(kinds)].map((nat) => ({ name: `${name}-${nat}`, nat }))
  return [
    ...side(
      'a',
      pairs.map(([a]) => a),
    ),
    ...side(
      'b',
      pairs.map(([, b]) => b),
    ),
  ]
}

/** Rounds in which no pod is of two pairs: what is measured of one pair is not the work for another. */
export function roundsOf(pairs: readonly NatPair[]): NatPair[][] {
  const rounds: NatPair[][] = []
  for (const pair of pairs) {
    const free = rounds.find((round) => round.every(([a, b]) => a !== pair[0] && b !== pair[1]))
    if (free === undefined) rounds.push([pair])
    else free.push(pair)
  }
  return rounds
}

export function summarize([a, b]: NatPair, attempts: readonly Attempt[]): NatResult {
  const rank = ({ route }: Attempt) => order.indexOf(route)
  const best = attempts.reduce((x, y) => (rank(y) > rank(x) ? y : x), attempts[0] ?? nothing)
  return {
    a,
    b,
    route: best.route,
    echoed: attempts.length > 0 && attempts.every((attempt) => attempt.echoed),
    firstMs: attempts[0]?.firstByteMs ?? null,
    upgradedMs:
      rank(best) > order.indexOf('relayed') ? round(best.startMs - (attempts[0]?.startMs ?? 0)) : null,
  }
}

const nothing: Attempt = { startMs: 0, firstByteMs: null, echoed: false, route: 'none' }

/** New connections from a pod of one site to the echo of another, until one is not relayed or time is up. */
export async function measurePair(lab: Lab, pair: NatPair): Promise<NatResult> {
  const [from, to] = [`a-${pair[0]}`, `b-${pair[1]}`]
  const argv = lab.node(
    'test/demo/attempts.ts',
    `tcp-echo-${to}`,
    '2701',
    String(paceMs),
    String(watchedSeconds),
  )
  const child = lab.spawn(from, argv)
  const attempts: Attempt[] = []
  try {
    for await (const line of createInterface({ input: child.stdout ?? process.stdin })) {
      const logged = await accessLine(lab, attempts.length, { pod: from, podUid: lab.pod(to).uid })
      attempts.push({
        ...(JSON.parse(line) as Omit<Attempt, 'route'>),
        route: String(logged.route ?? 'none'),
      })
      if (order.indexOf(attempts.at(-1)?.route ?? '') > order.indexOf('relayed')) child.stdin?.write('stop\n')
    }
  } finally {
    child.kill()
  }
  return summarize(pair, attempts)
}

/** All pairs, as many at a time as have no pod in common. */
export async function measureAll(
  lab: Lab,
  pairs: readonly NatPair[],
  onProgress: (step: string) => void,
): Promise<NatResult[]> {
  const results: NatResult[] = []
  for (const round of roundsOf(pairs)) {
    onProgress(`connecting ${round.map(([a, b]) => `${a} to ${b}`).join(', ')}`)
    results.push(...(await Promise.all(round.map((pair) => measurePair(lab, pair)))))
  }
  const place = (r: NatResult) => pairs.findIndex(([a, b]) => a === r.a && b === r.b)
  return results.sort((x, y) => place(x) - place(y))
}

function round(ms: number): number {
  return Math.round(ms * 10) / 10
}
