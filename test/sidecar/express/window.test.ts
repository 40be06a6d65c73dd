import { describe, expect, it } from 'vitest'
import { type Window, Windows } from '../../../sidecar/express/window.ts'

const KiB = 1024
const MiB = 1024 * KiB

/** The peer sends all that it may, and the app takes it at once; returns the credit given for it. */
function pass(window: Window, bytes: number, someWait = false): number {
  expect(window.came(bytes)).toBe(true)
  return window.taken(bytes, someWait)
}

/** Passes windowfuls until the window does not grow any more. */
function grow(window: Window): number {
  for (let size = 0; size !== window.size; ) {
    size = window.size
    pass(window, size)
  }
  return window.size
}

describe('a window', () => {
  it('gives credit once a quarter of it was taken, for what was taken', () => {
    const window = new Windows().open()
    expect(window.size).toBe(64 * KiB)
    expect(pass(window, 16 * KiB - 1)).toBe(0)
    expect(pass(window, 1)).toBe(16 * KiB)
  })

  it.each([
    ['exactly what it has', 64 * KiB, true],
    ['a byte more', 64 * KiB + 1, false],
  ])('lets the peer send %s: %d bytes', (_title, bytes, allowed) => {
    expect(new Windows().open().came(bytes)).toBe(allowed)
  })

  it('takes in no more than it has granted, however often it is refilled', () => {
    let now = 0
    const window = new Windows(() => now).open()
    let granted = 64 * KiB
    for (let i = 0; i < 100; i++) {
      now += 1_000
      expect(window.came(granted)).toBe(true)
      expect(window.came(1)).toBe(false)
      window.came(-1)
      granted = window.taken(granted, true)
    }
    expect(window.size).toBe(64 * KiB)
  })

  it('doubles up to 6 MiB while the app keeps up', () => {
    const window = new Windows().open()
    expect(pass(window, 64 * KiB)).toBe(128 * KiB)
    expect(window.size).toBe(128 * KiB)
    expect(grow(window)).toBe(6 * MiB)
  })

  it.each([
    ['stays as it is where the app is too slow, once in each windowful', 50, 64 * KiB],
    ['doubles all the same where the windowful was taken in a short time', 49, 6 * MiB],
  ])('%s: %d ms', (_title, windowfulMs, size) => {
    let now = 0
    const window = new Windows(() => now).open()
    for (let i = 0; i < 20; i++) {
      now += windowfulMs
      pass(window, window.size * 0.75)
      pass(window, window.size * 0.25, true)
    }
    expect(window.size).toBe(size)
  })
})

describe('all windows together', () => {
  it('leave something to grow for those that come later', () => {
    const windows = new Windows()
    const sizes = Array.from({ length: 16 }, () => grow(windows.open()))
    expect(windows.granted).toBeLessThan(11 * MiB)
    expect(sizes[0]).toBe(6 * MiB)
    expect(sizes[1]).toBeGreaterThanOrEqual(512 * KiB)
    expect(Math.min(...sizes)).toBe(16 * KiB)
  })

  it('are smaller where much is granted, and as before where it was given back', () => {
    const windows = new Windows()
    const open = Array.from({ length: 10 * 16 }, () => windows.open())
    expect(new Set(open.map((w) => w.size))).toEqual(new Set([64 * KiB]))
    const scarce = windows.open()
    expect(scarce.size).toBe(16 * KiB)
    expect(grow(scarce)).toBe(16 * KiB)
    for (const window of [...open, scarce]) window.close()
    expect(windows.granted).toBe(0)
    expect(windows.open().size).toBe(64 * KiB)
  })

  it('count a window that is closed twice once', () => {
    const windows = new Windows()
    const [window] = [windows.open(), windows.open()]
    window.close()
    window.close()
    expect(windows.granted).toBe(64 * KiB)
  })
})
