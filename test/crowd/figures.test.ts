import { describe, expect, it } from 'vitest'
import {
  type Crowd,
  jain,
  type Member,
  type Moment,
  type Replica,
  summarize,
  worstOf,
  wrongWith,
} from './figures.ts'

const member = (dialled: number, ...latenciesMs: number[]): Member => ({
  dialled,
  served: 0,
  latenciesMs,
  failures: [],
})
const moment: Moment = { rssMb: 100, fds: 500, channels: 10, pairs: 0, pauseMs: 5 }
const replica: Replica = { name: 'server', empty: moment, joined: moment, worst: moment, after: moment }
const crowd: Crowd = {
  dials: 20,
  perSecond: 2,
  failed: 0,
  failures: [],
  share: { min: 9, median: 10, max: 11, jain: 0.99 },
  latencyMs: { median: 1, p99: 2, max: 3, slowestMedian: 2 },
}

describe("Jain's index", () => {
  it.each<[number[], number]>([
    [[5, 5, 5, 5], 1],
    [[8, 0, 0, 0], 0.25],
    [[0, 0], 0],
    [[], 0],
  ])('of %j is %d', (shares, index) => {
    expect(jain(shares)).toBe(index)
  })
})

describe('the sum of a crowd', () => {
  it('counts all, and keeps the share and the latency of each', () => {
    const sum = summarize([member(2, 10, 30), member(4, 20, 20, 20, 60)], 2)
    expect(sum).toMatchObject({ dials: 6, perSecond: 3, failed: 0, failures: [] })
    expect(sum.share).toMatchObject({ min: 2, median: 3, max: 4 })
    expect(sum.latencyMs).toMatchObject({ median: 20, max: 60, slowestMedian: 20 })
  })

  it('tells each kind of failure once', () => {
    const failures = ['x', 'x', 'y']
    expect(summarize([{ ...member(1, 1), failures }], 1)).toMatchObject({ failed: 3, failures: ['x', 'y'] })
  })
})

describe('the worst of some moments', () => {
  it('is that of each figure by itself', () => {
    const other = { ...moment, rssMb: 300, fds: 1 }
    expect(worstOf([moment, other])).toEqual({ ...moment, rssMb: 300 })
  })
})

describe('what is wrong', () => {
  const worst = (change: Partial<Moment>): Replica[] => [{ ...replica, worst: { ...moment, ...change } }]
  const ended = (change: Partial<Moment>): Replica[] => [{ ...replica, after: { ...moment, ...change } }]

  it.each<[string, Partial<Crowd>, Replica[], string | undefined]>([
    ['nothing', {}, [replica], undefined],
    ['descriptors within bounds', {}, ended({ fds: 516 }), undefined],
    ['a failed dial', { failed: 1, failures: ['x'] }, [replica], '1 dials failed, as: x'],
    ['nothing for one', { share: { ...crowd.share, min: 0 } }, [replica], 'a sidecar got nothing'],
    ['an unfair share', { share: { ...crowd.share, jain: 0.8 } }, [replica], "unfair: Jain's index is 0.800"],
    ['much memory', {}, worst({ rssMb: 251 }), 'server took 251 MB'],
    ['many descriptors', {}, worst({ fds: 10_001 }), 'server took 10001 descriptors'],
    ['a long pause', {}, worst({ pauseMs: 1_001 }), 'the event loop of server paused 1001 ms'],
    ['pairs left', {}, ended({ pairs: 2 }), 'server has 2 pairs left'],
    ['descriptors left', {}, ended({ fds: 517 }), 'server has 17 descriptors left'],
  ])('with %s', (_title, change, replicas, sentence) => {
    expect(wrongWith({ ...crowd, ...change }, replicas)).toEqual(sentence === undefined ? [] : [sentence])
  })
})
