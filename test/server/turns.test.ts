import { setImmediate as turn } from 'node:timers/promises'
import { describe, expect, it } from 'vitest'
import { inTurns, Turnstile } from '../../server/turns.ts'

/** Longer than work may hold the event loop at a stretch, in ms. */
const longMs = 11

function work(): void {
  for (const until = performance.now() + longMs; performance.now() < until; );
}

describe('work in turns', () => {
  it('is done in order, and lets the event loop go on in between', async () => {
    const done: number[] = []
    const all = inTurns([1, 2, 3], (one) => {
      work()
      done.push(one)
    })
    expect(done).toEqual([1])
    await all
    expect(done).toEqual([1, 2, 3])
  })

  it('is done for what a set has when its turn comes', async () => {
    const set = new Set([1, 2, 3])
    const done: number[] = []
    const all = inTurns(set, (one) => {
      work()
      done.push(one)
    })
    set.delete(2)
    set.add(4)
    await all
    expect(done).toEqual([1, 3, 4])
  })

  it('fails with what fails', async () => {
    const failing = inTurns([1], () => {
      throw new Error('broken')
    })
    await expect(failing).rejects.toThrow('broken')
  })
})

describe('a turnstile', () => {
  it('lets only so many through in a turn, in the order of their coming', async () => {
    const stile = new Turnstile(2)
    const through: number[] = []
    const pass = (one: number) => stile.pass().then(() => through.push(one))
    const all = [1, 2, 3, 4, 5].map(pass)
    expect(through).toEqual([])
    const seen: number[] = []
    for (let i = 0; i < 3; i++) {
      await turn()
      seen.push(through.length)
    }
    await Promise.all(all)
    expect(seen).toEqual([2, 4, 5])
    expect(through).toEqual([1, 2, 3, 4, 5])
    await pass(6)
    expect(through.at(-1)).toBe(6)
  })
})
