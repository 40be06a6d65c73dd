import { describe, expect, it } from 'vitest'
import {
  boundsFor,
  isAtRest,
  judge,
  median,
  type Sample,
  slopeOf,
  type Traffic,
  thirdsOf,
  verdict,
} from './verdict.ts'

const minute = 60_000
const quiet: Sample = {
  atMs: 0,
  rssKb: 100_000,
  anonymousKb: 50_000,
  fds: 40,
  sessions: 0,
  connections: 0,
  pump: 0,
}
const bounds = { kbPerMinute: 300, perMinute: 2, fds: 4 }
const points = (...values: number[]) => values.map((value, i) => ({ atMs: i * minute, value }))
/** Ten minutes in which a figure is that. */
const during = (key: keyof Sample, value: (at: number) => number) =>
  Array.from({ length: 60 }, (_, i) => ({ ...quiet, atMs: (i * minute) / 6, [key]: value(i / 6) }))

describe('a median', () => {
  it.each<[number[], number]>([
    [[3], 3],
    [[3, 1], 2],
    [[9, 1, 5], 5],
    [[], Number.NaN],
  ])('of %j is %d', (values, expected) => {
    expect(median(values)).toBe(expected)
  })
})

describe('a slope', () => {
  it.each<[string, number[], number]>([
    ['nothing', [], 0],
    ['one moment', [5], 0],
    ['what is flat', [5, 5, 5, 5, 5, 5], 0],
    ['what grows', [0, 1, 2, 3, 4, 5], 1],
    ['what shrinks', [5, 4, 3, 2, 1, 0], -1],
    ['what has grown in its first third only', [0, 50, 90, 90, 90, 90], 0],
    ['what has one peak', [5, 5, 5, 5, 900, 5, 5, 5, 5], 0],
  ])('of %s is per minute, of the last two thirds', (_title, values, slope) => {
    expect(slopeOf(points(...values))).toBeCloseTo(slope)
  })
})

describe('first, middle and last', () => {
  it.each<[number[], [number, number, number]]>([
    [[7], [7, 7, 7]],
    [
      [1, 2, 3],
      [1, 2, 3],
    ],
    [Array.from({ length: 30 }, (_, i) => i), [1, 14, 28]],
  ])('are medians of a tenth each of %j', (values, [first, middle, last]) => {
    expect(thirdsOf(values)).toEqual({ first, middle, last })
  })
})

describe('the bound of growth', () => {
  it.each([
    [1, 3_000, 20],
    [2, 1_500, 10],
    [10, 300, 2],
    [60, 300, 2],
  ])('after %d minutes is %d kB, and %d of what is counted, a minute', (minutes, kbPerMinute, perMinute) => {
    expect(boundsFor(minutes)).toMatchObject({ kbPerMinute, perMinute })
  })
})

describe('a process', () => {
  it.each<[string, Partial<Sample>, string[]]>([
    ['as before', {}, []],
    ['with some descriptors more', { fds: 44 }, []],
    ['with many descriptors more', { fds: 45 }, ['fds']],
    ['with a session left', { sessions: 1 }, ['sessions']],
    ['with a connection left', { connections: 1 }, ['connections']],
    ['with one left in the pump', { pump: 1 }, ['pump']],
  ])('that ends %s', (_title, after, wrong) => {
    const rows = judge({ part: 'a', before: quiet, during: [], after: { ...quiet, ...after } }, bounds)
    expect(rows.filter((r) => r.wrong !== undefined).map((r) => r.figure)).toEqual(wrong)
    expect(isAtRest({ ...quiet, ...after }, quiet, bounds)).toBe(wrong.length === 0)
  })

  it.each<[string, (at: number) => number, boolean]>([
    ['stays', () => 100_000, true],
    ['grows by less than the bound', (at) => 100_000 + 250 * at, true],
    ['grows by more', (at) => 100_000 + 350 * at, false],
    ['grows at first and then stays', (at) => 100_000 + 5_000 * Math.min(at, 3), true],
    ['takes a step in the middle', (at) => 100_000 + (at < 6.7 ? 0 : 9_000), true],
    ['goes up and down', (at) => 100_000 + 9_000 * Math.sin(9 * at), true],
  ])('whose memory %s', (_title, rssKb, good) => {
    const rows = judge({ part: 'a', before: quiet, during: during('rssKb', rssKb), after: quiet }, bounds)
    expect(rows.every((r) => r.wrong === undefined)).toBe(good)
  })

  it.each<[string, keyof Sample, (at: number) => number, boolean]>([
    ['connections stay about as many', 'connections', (at) => 20 + 15 * Math.sin(9 * at), true],
    ['connections become fewer', 'connections', (at) => 90 - 8 * at, true],
    ['connections add up', 'connections', (at) => 18 + 10 * at + 15 * Math.sin(9 * at), false],
    ['descriptors add up', 'fds', (at) => 57 + 3 * at, false],
    ['sessions add up', 'sessions', (at) => 1 + 3 * at, false],
  ])('whose %s while the traffic stays the same', (_title, key, value, good) => {
    const rows = judge({ part: 'a', before: quiet, during: during(key, value), after: quiet }, bounds)
    expect(rows.every((r) => r.wrong === undefined)).toBe(good)
  })

  it('that was not seen before is at rest when it carries nothing', () => {
    expect(isAtRest({ ...quiet, sessions: 3 }, undefined, bounds)).toBe(true)
    expect(isAtRest({ ...quiet, connections: 1 }, undefined, bounds)).toBe(false)
  })
})

describe('the verdict', () => {
  const traffic = (change: Partial<Traffic> = {}) =>
    new Map([['a to b', { good: { new: 3 }, failed: 0, failures: [], ...change }]])
  const routes = { direct: 1, punched: 1, relayed: 1 }
  const rows = judge({ part: 'a', before: quiet, during: [], after: quiet }, bounds)

  it('has nothing to say of a good run', () => {
    expect(verdict(rows, traffic(), routes)).toEqual([])
  })

  it.each<[string, Parameters<typeof verdict>, string]>([
    [
      'a figure',
      [rows.map((r) => ({ ...r, wrong: 'grows' })).slice(0, 1), traffic(), routes],
      'a: rss: grows',
    ],
    ['a failure', [rows, traffic({ failed: 2, failures: ['x'] }), routes], 'a to b: 2 failed, as: x'],
    ['traffic that did nothing', [rows, traffic({ good: {} }), routes], 'a to b: nothing was done'],
    [
      'a route without traffic',
      [rows, traffic(), { ...routes, punched: 0 }],
      'nothing went by the route punched',
    ],
  ])('tells of %s', (_title, facts, sentence) => {
    expect(verdict(...facts)).toEqual([sentence])
  })
})
