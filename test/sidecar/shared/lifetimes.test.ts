import { describe, expect, it } from 'vitest'
import {
  parseDuration,
  parseLeafLifetime,
  parseOfflineGrace,
  renewalDelayMs,
} from '../../../sidecar/shared/lifetimes.ts'

const hour = 3_600_000
const day = 24 * hour

describe('times in words', () => {
  it.each([
    ['90s', 90_000],
    ['15m', 900_000],
    ['24h', day],
    ['7d', 7 * day],
    ['0s', 0],
    ['', undefined],
    ['7', undefined],
    ['-7d', undefined],
    ['1.5h', undefined],
    ['7 d', undefined],
    ['7w', undefined],
    ['1234567s', undefined],
  ])('%j is %s ms', (text, ms) => {
    expect(parseDuration(text)).toBe(ms)
  })

  it.each([
    ['9m', undefined],
    ['10m', 600_000],
    ['90d', 90 * day],
    ['91d', undefined],
    ['soon', undefined],
  ])('a leaf may live for %s: %s', (text, ms) => {
    expect(parseLeafLifetime(text)).toBe(ms)
  })

  it.each([
    ['0s', 0],
    ['72h', 72 * hour],
    ['90d', 90 * day],
    ['91d', undefined],
    ['', undefined],
  ])('a grace may be %s: %s', (text, ms) => {
    expect(parseOfflineGrace(text)).toBe(ms)
  })
})

describe('when a certificate is renewed', () => {
  it.each([
    ['at half of its life at the earliest', day, 0, 0, 12 * hour],
    ['at 70 % at the latest', day, 0, 1, 16.8 * hour],
    [
      'each day, however long it lives: a site that is cut off has nearly all of it left',
      90 * day,
      0,
      1,
      16.8 * hour,
    ],
    ['after half of what is left, where that failed', day, 16 * hour, 0, 4 * hour],
    ['each minute, not in a storm, once it has expired', day, 30 * hour, 0, 60_000],
    ['sooner where it lives for a moment only', 30_000, 0, 0, 15_000],
    ['each second at most', 10_000, 10_000, 0, 1_000],
  ])('%s', (_title, lifetimeMs, agoMs, random, delayMs) => {
    expect(Math.round(renewalDelayMs(lifetimeMs, agoMs, () => random))).toBe(delayMs)
  })
})
