import type { Answer } from 'dns-packet'
import { describe, expect, it } from 'vitest'
import { found, none, type Reply } from '../../../sidecar/dns/answer.ts'
import { AnswerCache, lifetimeOf } from '../../../sidecar/dns/cache.ts'
import { settings } from './fixtures.ts'

const a = (ttl: number): Answer => ({ type: 'A', name: 'x.test', class: 'IN', ttl, data: '192.0.2.1' })
const soa = (ttl: number, minimum: number): Answer => ({
  type: 'SOA',
  name: 'test',
  ttl,
  data: { mname: 'm', rname: 'r', serial: 1, refresh: 1, retry: 1, expire: 1, minimum },
})
const negative = (rcode: 'NXDOMAIN' | 'NOERROR' | 'SERVFAIL', authorities: Answer[]): Reply => ({
  rcode,
  answers: [],
  authorities,
  additionals: [],
})

describe('how long an answer lives', () => {
  it.each([
    ['the shortest TTL of its records', found([a(60), a(30)]), 30],
    ['not at all with TTL 0', found([a(0)]), 0],
    ['at most a day', found([a(1_000_000)]), 86_400],
    ['a name that is not there: the SOA’s minimum', negative('NXDOMAIN', [soa(60, 20)]), 20],
    ['no data: the SOA’s TTL', negative('NOERROR', [soa(10, 20)]), 10],
    ['a negative answer: at most five minutes', negative('NXDOMAIN', [soa(9_000, 9_000)]), 300],
    ['a negative answer without SOA: not at all', negative('NXDOMAIN', []), 0],
    ['a failure: not at all', negative('SERVFAIL', [soa(60, 60)]), 0],
    ['our own negative answers: five seconds', none('NXDOMAIN', settings), 5],
  ])('%s', (_title, reply, seconds) => {
    expect(lifetimeOf(reply)).toBe(seconds)
  })
})

describe('the cache', () => {
  it('counts TTLs down, then has nothing, then something outdated, then nothing at all', () => {
    let now = 1_000
    const cache = new AnswerCache(() => now)
    cache.put('k', found([a(60), a(90)]))
    now += 10.5
    expect(cache.get('k')?.answers).toMatchObject([{ ttl: 50 }, { ttl: 50 }])
    now += 50
    expect(cache.get('k')).toBeUndefined()
    expect(cache.stale('k')?.answers[0]).toMatchObject({ ttl: 30 })
    now += 3_600
    expect(cache.stale('k')).toBeUndefined()
  })

  it('is bounded, and drops the oldest', () => {
    const cache = new AnswerCache(() => 0)
    for (let i = 0; i < 3_000; i++) cache.put(`k${i}`, found([a(60)]))
    expect(cache.size).toBe(2_000)
    expect(cache.get('k0')).toBeUndefined()
    expect(cache.get('k2999')).toBeDefined()
  })
})
