import { describe, expect, it } from 'vitest'
import { patienceMs, roundTripAfter } from '../../../sidecar/tunnel/patience.ts'

describe('the patience with a silent session', () => {
  it.each<[string, number | undefined, number]>([
    ['within a site', 0.5, 2_000],
    ['across a country', 40, 2_000],
    ['over a slow link', 400, 3_200],
    ['over a very slow one', 3_000, 5_000],
    ['that has not answered a ping yet', undefined, 4_000],
  ])('%s is some round trips, within bounds', (_title, roundTripMs, expected) => {
    expect(patienceMs(roundTripMs)).toBe(expected)
  })
})

describe('the round trip', () => {
  it.each<[number | undefined, number, number]>([
    [undefined, 30, 30],
    [30, 900, 900],
    [900, 30, 720],
    [30, 30, 30],
  ])('of %s and then %d ms is taken for %d', (before, took, expected) => {
    expect(roundTripAfter(before, took)).toBe(expected)
  })
})
