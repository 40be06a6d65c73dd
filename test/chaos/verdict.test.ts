import { describe, expect, it } from 'vitest'
import { type Ended, judge } from './verdict.ts'

const strict = { mayFail: false, mayTruncate: false }
const lenient = { mayFail: true, mayTruncate: true }
const mendedAt = 10_000

function one(how: Ended['how'], startedAt: number, took = 100, route = 'relayed'): Ended {
  return { route, startedAt, endedAt: startedAt + took, how, why: 'why' }
}

function judged(fresh: Ended[], rules = lenient, { long = [] as Ended[], leftOver = 0 } = {}) {
  return judge({ report: { fresh, long, bytes: 3_000_000 }, mendedAt, leftOver }, rules)
}

describe('recovery', () => {
  it.each<[string, Ended[], number | null]>([
    ['the first connection is good', [one('good', 10_050)], 150],
    ['what failed before does not count', [one('reset', 9_000), one('good', 10_050)], 150],
    ['what worked before does not count', [one('good', 9_000)], null],
    [
      'only what begins after the last failure counts',
      [one('good', 10_010), one('reset', 10_500), one('good', 12_000)],
      2_100,
    ],
    [
      'a connection that ends badly is bad from its beginning',
      [one('reset', 10_010, 5_000), one('good', 10_200)],
      300,
    ],
    ['nothing works again', [one('good', 10_010), one('reset', 10_500)], null],
    ['the slowest route counts', [one('good', 10_010), one('good', 10_000, 4_000, 'direct')], 4_000],
    ['one route does not work again', [one('good', 10_010), one('reset', 10_010, 5, 'direct')], null],
  ])('is measured to the first good connection: %s', (_title, fresh, recoveryMs) => {
    expect(judged(fresh).recoveryMs).toBe(recoveryMs)
  })
})

describe('a verdict', () => {
  const good = one('good', 10_050)

  it.each<[string, Ended[], Parameters<typeof judged>[1], string | undefined]>([
    ['failures, where they may be', [one('reset', 10_000), good], lenient, undefined],
    ['failures, where none may be', [one('reset', 10_000), good], strict, 'failed'],
    ['an end that is no reset, where it may be', [one('truncated', 10_000), good], lenient, undefined],
    [
      'an end that is no reset',
      [one('truncated', 9_000), good],
      { mayFail: true, mayTruncate: false },
      'truncated',
    ],
    ['a wrong byte', [one('corrupt', 9_000), good], lenient, 'corrupt'],
    ['a stuck connection', [one('stuck', 9_000), good], lenient, 'stuck'],
    ['a late recovery', [one('good', 26_000)], lenient, 'after 16100 ms'],
    ['no recovery', [], { ...lenient }, undefined],
  ])('says what is wrong with %s', (_title, fresh, rules, reason) => {
    expect(judged(fresh, rules).reasons).toEqual(
      reason === undefined ? [] : [expect.stringContaining(reason)],
    )
  })

  it('holds long connections to the same, but for a reset', () => {
    expect(judged([good], strict, { long: [one('reset', 0)] })).toMatchObject({ longEnded: 1, reasons: [] })
    expect(judged([good], lenient, { long: [one('stuck', 0)] }).reasons).toHaveLength(1)
  })

  it('does not overlook what the sidecars still hold', () => {
    expect(judged([good], lenient, { leftOver: 2 }).reasons).toEqual(['2 connections left over in sidecars'])
  })
})
