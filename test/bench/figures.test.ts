import { describe, expect, it } from 'vitest'
import { type Figure, median, quantile, summarize } from './figures.ts'

const speed: Figure = { metric: 'bulk', unit: 'Gbit/s', better: 'higher', least: 1.4, aim: 1.7 }
const cost: Figure = { metric: 'cpu', unit: 'cpu-s/GB', better: 'lower', least: 0.95 }

describe('a summary', () => {
  const rounds = [
    { ours: { bulk: 6, cpu: 2 }, peer: { bulk: 4, cpu: 1 } },
    { ours: { bulk: 3, cpu: 1 }, peer: { bulk: 1, cpu: 2 } },
    { ours: { bulk: 8, cpu: 1 }, peer: { bulk: 8, cpu: 1 } },
  ]

  it('has medians, and ratios of each round', () => {
    expect(summarize('tunnel', 'haproxy', speed, rounds)).toEqual({
      case: 'tunnel',
      metric: 'bulk',
      unit: 'Gbit/s',
      ours: 6,
      peer: 4,
      peerName: 'haproxy',
      ratio: { median: 1.5, min: 1, max: 3 },
      least: 1.4,
      aim: 1.7,
      pass: true,
    })
  })

  it.each([
    ['higher is better, and it is lower', { ...speed, least: 1.6 }, false],
    ['lower is better, and it is higher', cost, false],
    ['lower is better, and it is as low', { ...cost, least: 1 }, true],
    ['there is no bound', { metric: 'cpu', unit: 'MB', better: 'lower' } satisfies Figure, null],
  ])('says whether it passes where %s', (_what, figure, pass) => {
    expect(summarize('c', 'p', figure, rounds).pass).toBe(pass)
  })

  it('is an error of what was not measured', () => {
    expect(() => summarize('c', 'p', { ...cost, metric: 'p99' }, rounds)).toThrow('p99: it was not measured')
  })
})

it.each([
  [[3, 1, 2], 2],
  [[4, 1, 2, 3], 2.5],
  [[7], 7],
])('the median of %j is %d', (values, expected) => expect(median(values)).toBe(expected))

it.each([
  [[1, 2, 3, 4], 0.5, 2],
  [[1, 2, 3, 4], 0.99, 4],
  [[5], 0.5, 5],
])('of %j, a share of %d is at most %d', (values, share, expected) =>
  expect(quantile(values, share)).toBe(expected),
)
