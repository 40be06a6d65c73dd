import { describe, expect, it } from 'vitest'
import { natKinds } from '../lab/nat.ts'
import { run } from '../lab/shell.ts'
import {
  type Attempt,
  type NatPair,
  type NatResult,
  parsePairs,
  roundsOf,
  sitesOf,
  summarize,
} from './nat.ts'
import { natTable } from './nat-table.ts'

const pair: NatPair = ['full', 'port']
const attempt = (startMs: number, route: string, echoed = true): Attempt => {
  return { startMs, firstByteMs: 7, echoed, route }
}

describe('what the demo says of a pair', () => {
  it.each<[string, Attempt[], Omit<NatResult, 'a' | 'b'>]>([
    [
      'upgraded',
      [attempt(2, 'relayed'), attempt(152, 'relayed'), attempt(302, 'punched'), attempt(452, 'punched')],
      { route: 'punched', echoed: true, firstMs: 7, upgradedMs: 300 },
    ],
    [
      'relayed for good',
      [attempt(2, 'relayed')],
      { route: 'relayed', echoed: true, firstMs: 7, upgradedMs: null },
    ],
    ['direct at once', [attempt(2, 'direct')], { route: 'direct', echoed: true, firstMs: 7, upgradedMs: 0 }],
    [
      'broken once',
      [attempt(2, 'relayed', false), attempt(152, 'relayed')],
      { route: 'relayed', echoed: false, firstMs: 7, upgradedMs: null },
    ],
    ['never tried', [], { route: 'none', echoed: false, firstMs: null, upgradedMs: null }],
  ])('is true when it was %s', (_, attempts, expected) => {
    expect(summarize(pair, attempts)).toEqual({ a: 'full', b: 'port', ...expected })
  })
})

describe('the pairs of the demo', () => {
  it('are sixteen, in rounds in which no site is of two pairs', () => {
    const pairs = parsePairs('all')
    expect(new Set(pairs.map(String)).size).toBe(16)
    const rounds = roundsOf(pairs)
    expect(rounds.flat()).toHaveLength(16)
    for (const round of rounds)
      for (const side of [0, 1] as const) expect(new Set(round.map((p) => p[side])).size).toBe(round.length)
    expect(sitesOf(pairs)).toHaveLength(8)
  })

  it('are refused with one sentence when there is no such kind', () => {
    for (const text of ['cone,full', 'full', 'full,port,port', ''])
      expect(() => parsePairs(text)).toThrow(
        `Cannot show NATs "${text}": --nat takes all, or two of ${natKinds.join(', ')}, as in full,symmetric.`,
      )
  })

  it('stand in a table, rows for where connections begin', () => {
    const table = natTable([
      { a: 'full', b: 'port', route: 'punched', echoed: true, firstMs: 12.3, upgradedMs: 151 },
      { a: 'full', b: 'symmetric', route: 'relayed', echoed: true, firstMs: 9, upgradedMs: null },
      { a: 'port', b: 'port', route: 'relayed', echoed: false, firstMs: null, upgradedMs: null },
    ])
    expect(table.split('\n').slice(0, 4)).toEqual([
      '  from \\ to  port           symmetric      ',
      '  full       punched        relayed',
      '             12, 151 ms     9 ms',
      '  port       ✘ broken',
    ])
  })
})

describe('npm run demo -- --nat', () => {
  it('measures a pair, says it as JSON and leaves nothing behind', async () => {
    const { stdout, code } = await run([
      process.execPath,
      'test/demo/main.ts',
      '--nat',
      'port,symmetric',
      '--json',
    ])
    const told = JSON.parse(stdout)
    expect(told.nat).toMatchObject([
      { a: 'port', b: 'symmetric', route: 'relayed', echoed: true, upgradedMs: null },
    ])
    expect(told.nat[0].firstMs).toBeGreaterThan(0)
    expect(told).toMatchObject({ hostRulesUnchanged: true, steps: [{}, {}, {}, {}] })
    expect(code).toBe(0)
  })
})
