import { expect, it } from 'vitest'
import { narrow, wide, widthAfter } from '../../../sidecar/express/width.ts'

const MB = 1e6

it.each([
  {
    what: 'that is full and has sent little',
    now: wide,
    bytes: 0.9 * MB,
    ms: 1_000,
    isFull: true,
    becomes: narrow,
  },
  { what: 'that has little to send', now: wide, bytes: 100, ms: 1_000, isFull: false, becomes: wide },
  { what: 'that is full and fast', now: wide, bytes: 1 * MB, ms: 1_000, isFull: true, becomes: wide },
  {
    what: 'that is full and was looked at late',
    now: wide,
    bytes: 1 * MB,
    ms: 1_100,
    isFull: true,
    becomes: narrow,
  },
  { what: 'that is slow still', now: narrow, bytes: 0.1 * MB, ms: 1_000, isFull: true, becomes: narrow },
  {
    what: 'that was slow, and has little to send',
    now: narrow,
    bytes: 100,
    ms: 1_000,
    isFull: false,
    becomes: narrow,
  },
  { what: 'that was slow, and is not', now: narrow, bytes: 3 * MB, ms: 1_000, isFull: true, becomes: wide },
])('a lane $what', ({ now, becomes, ...sent }) => {
  expect(widthAfter(now, sent)).toBe(becomes)
})
