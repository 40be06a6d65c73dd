import { describe, expect, it } from 'vitest'
import { Servers, spread } from '../../../sidecar/control/servers.ts'

const [a, b, c] = ['a', 'b', 'c'].map((host) => ({ host, port: 1 }))
const all = [a, b, c].filter((s) => s !== undefined)
const hosts = (servers: readonly { host: string }[]) => servers.map((s) => s.host).join('')

describe('the servers of a sidecar', () => {
  it('are begun at another place by each pod, in equal shares', () => {
    const firsts = Array.from({ length: 3_000 }, (_, i) => hosts(spread(all, `pod-${i}`))[0] ?? '')
    for (const host of 'abc') {
      const share = firsts.filter((f) => f === host).length
      expect(share).toBeGreaterThan(850)
      expect(share).toBeLessThan(1_150)
    }
    expect(hosts(spread(all, 'pod-1'))).toBe(hosts(spread(all, 'pod-1')))
  })

  it('are tried nearest first, those that failed lately last', () => {
    const servers = new Servers(all, 'pod-1')
    const [first, second, third] = servers.order(0)
    if (first === undefined || second === undefined || third === undefined) throw new Error('there are three')
    servers.opened(first, 200)
    servers.opened(second, 30)
    servers.opened(third, 120)
    expect(servers.order(0)).toEqual([second, third, first])
    servers.avoid(second, 0)
    expect(servers.order(1)).toEqual([third, first, second])
    expect(servers.order(10_001)).toEqual([second, third, first])
  })

  it('do not change their order for a few ms', () => {
    const servers = new Servers(all, 'pod-1')
    const before = servers.order(0)
    for (const [i, server] of before.entries()) servers.opened(server, 15 - i)
    expect(servers.order(0)).toEqual(before)
  })
})
