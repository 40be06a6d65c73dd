import { describe, expect, it } from 'vitest'
import { memoryIn, metricIn, routesIn } from './probe.ts'

const page = `# HELP edgemesh_pairs Pairs.
# TYPE edgemesh_pairs gauge
edgemesh_pairs 7
edgemesh_pairs_total 99
edgemesh_frames{kind="a"} 2
edgemesh_frames{kind="b"} 3
edgemesh_connections_total{direction="outbound",route="direct",outcome="closed"} 5
edgemesh_connections_total{direction="outbound",route="direct",outcome="reset by app"} 2
edgemesh_connections_total{direction="outbound",route="relayed",outcome="closed"} 4
edgemesh_connections_total{direction="inbound",route="inbound",outcome="closed"} 8
`

describe('a page of metrics', () => {
  it.each([
    ['edgemesh_pairs', 7],
    ['edgemesh_frames', 5],
    ['edgemesh_frame', 0],
    ['edgemesh_none', 0],
  ])('has %s as the sum over its labels: %d', (name, value) => {
    expect(metricIn(page, name)).toBe(value)
  })

  it('has the outbound connections of each route', () => {
    expect(routesIn(page)).toEqual({ direct: 7, relayed: 4 })
    expect(routesIn('')).toEqual({})
  })
})

describe("the kernel's account of a process", () => {
  it('has its resident and its anonymous memory', () => {
    const rollup = 'Rss:                 100 kB\nPss:  90 kB\nAnonymous:            60 kB\nLazyFree: 0 kB\n'
    expect(memoryIn(rollup)).toEqual({ rssKb: 100, anonymousKb: 60 })
  })
})
