import { describe, expect, it } from 'vitest'
import { keyOf } from '../../../sidecar/services/balancer.ts'
import { available, blamesEndpoint, EndpointHealth, healthKey } from '../../../sidecar/services/health.ts'
import { RetryBudget } from '../../../sidecar/services/retry-budget.ts'
import type { Endpoint } from '../../../sidecar/shared/catalogue.ts'

const ep = (name: string, more: Partial<Endpoint> = {}): Endpoint => ({
  addresses: ['10.244.1.2'],
  podUid: name,
  ports: { http: 8080 },
  ...{ ready: true, serving: true, terminating: false, sidecar: true },
  ...more,
})

describe('which endpoints are left in use', () => {
  it.each<[string, Record<string, number>, string]>([
    ['all, where none has failed', { a: 0, b: 0, c: 0 }, 'abc'],
    ['the others, where one is ejected', { a: 0, b: 150, c: 0 }, 'ac'],
    ['all of those whose rest is over', { a: 100, b: 99, c: 0 }, 'abc'],
    ['the last one of two', { a: 150, b: 0 }, 'b'],
    ['one of three, where two are ejected', { a: 150, b: 0, c: 190 }, 'b'],
    ['half of four: of three ejected ones the one that is due first', { a: 150, b: 0, c: 120, d: 190 }, 'bc'],
    ['half of five, rounded down', { a: 150, b: 140, c: 120, d: 190, e: 0 }, 'ce'],
    ['all, where all are ejected', { a: 150, b: 160 }, 'ab'],
    ['the only one, though it failed', { a: 150 }, 'a'],
    ['none of none', {}, ''],
  ])('%s', (_title, rests, left) => {
    expect(available(Object.keys(rests), (c) => rests[c] ?? 0, 100).join('')).toBe(left)
  })
})

describe('what a failure says of the endpoint', () => {
  it.each<[string, boolean]>([
    ['refused', true],
    ['unreachable', true],
    ['timeout', true],
    ['reset', true],
    ['stopping', true],
    ['identity-mismatch', true],
    ['ECONNRESET', true],
    ['forbidden', false],
    ['limit', false],
    ['unauthenticated', false],
    ['no-endpoint', false],
    ['not-connected', false],
  ])('%s: ejected %s', (code, ejects) => {
    expect(blamesEndpoint(code)).toBe(ejects)
  })
})

describe('the health of endpoints', () => {
  const key = healthKey('a', 8080)

  it('rests longer with each failure, up to a minute, never less than half of the first rest', () => {
    let now = 0
    for (const [random, shortest, longest] of [
      [0, 1_000, 1_000],
      [0.999_999, 2_999, 61_000],
    ] as const) {
      const health = new EndpointHealth(
        () => now,
        () => random,
      )
      const rests = Array.from({ length: 12 }, () => {
        health.failed(key, now)
        return health.restsUntil(key) - now
      })
      expect(Math.floor(rests[0] ?? 0)).toBe(shortest)
      expect(Math.ceil(rests.at(-1) ?? 0)).toBe(longest)
      expect(rests).toEqual(rests.toSorted((x, y) => x - y))
      now += 1_000
    }
  })

  it('forgets an endpoint that was reached, and counts those that are ejected', () => {
    const health = new EndpointHealth(() => 0)
    health.failed(key, 0)
    expect(health.ejected).toBe(1)
    health.succeeded(key)
    expect(health.ejected).toBe(0)
    expect(health.restsUntil(key)).toBeLessThan(0)
  })

  it('lets one connection at a time try an endpoint whose rest is over', () => {
    let now = 0
    const health = new EndpointHealth(() => now)
    health.trying(key)
    expect(health.restsUntil(key)).toBeLessThan(0) // one that never failed is open to all
    health.failed(key, 0)
    now = health.restsUntil(key)
    health.trying(key)
    expect(health.restsUntil(key)).toBeGreaterThan(now)
  })

  it('keeps others off an endpoint that is slow, without counting it as ejected', () => {
    const health = new EndpointHealth(() => 0)
    health.slow(key)
    expect(health.restsUntil(key)).toBeGreaterThan(0)
    expect(health.ejected).toBe(0)
  })

  it('keeps others off for longer where an endpoint is slow again and again, up to what a connection has', () => {
    const health = new EndpointHealth(() => 0)
    const rests = Array.from({ length: 6 }, () => {
      health.slow(key)
      return health.restsUntil(key)
    })
    expect(rests).toEqual([1_000, 2_000, 4_000, 8_000, 15_000, 15_000])
    health.succeeded(key)
    health.slow(key)
    expect(health.restsUntil(key)).toBe(1_000)
  })

  it('takes failures of attempts that ran beside each other for one', () => {
    let now = 0
    const health = new EndpointHealth(
      () => now,
      () => 1,
    )
    const began = [health.trying(key), health.trying(key), health.trying(key)]
    now = 100
    for (const beganMs of began) health.failed(key, beganMs)
    expect(health.restsUntil(key)).toBe(100 + 3_000)
    now = health.restsUntil(key)
    health.failed(key, health.trying(key))
    expect(health.restsUntil(key)).toBe(now + 5_000)
  })

  it.each<[string, Endpoint[], boolean]>([
    ['is the same as before', [ep('a'), ep('b')], true],
    ['is the same while others come and go', [ep('a'), ep('c')], true],
    ['has another address', [ep('a', { addresses: ['10.244.1.3'] })], false],
    ['is not ready any more', [ep('a', { ready: false })], false],
    ['has gone', [ep('b')], false],
  ])('starts anew where the endpoint changes; here it %s', (_title, after, stays) => {
    const health = new EndpointHealth(() => 0)
    health.failed(key, 0)
    health.changed([ep('a'), ep('b')], after, keyOf)
    expect(health.restsUntil(key) > 0).toBe(stays)
  })

  it('remembers a bounded number of endpoints', () => {
    const health = new EndpointHealth(() => 0)
    for (let i = 0; i < 10_002; i++) health.failed(healthKey(`pod-${i}`, 80), 0)
    expect(health.ejected).toBe(10_000)
    expect(health.restsUntil(healthKey('pod-1', 80))).toBeLessThan(0)
  })
})

describe('the budget of retries', () => {
  it('grants some at once, then a share of the connections, whatever number of them fails', () => {
    const budget = new RetryBudget(() => 0)
    let granted = 0
    for (let i = 0; i < 1_000; i++) {
      budget.onConnection('a')
      if (budget.take('a') === 0) granted++
      if (budget.take('a') === 0) granted++
    }
    expect(granted).toBeGreaterThanOrEqual(200)
    expect(granted).toBeLessThanOrEqual(211)
  })

  it('says how long to wait, and keeps services apart', () => {
    let now = 0
    const budget = new RetryBudget(() => now)
    while (budget.take('a') === 0) now += 0
    const waitMs = budget.take('a')
    expect(waitMs).toBe(500)
    expect(budget.take('b')).toBe(0)
    now += waitMs
    expect(budget.take('a')).toBe(0)
    now += 3_600_000
    expect(Array.from({ length: 11 }, () => budget.take('a')).filter((w) => w === 0)).toHaveLength(10)
  })
})
