import { describe, expect, it } from 'vitest'
import { FanOut } from '../../server/fan-out.ts'

/** Longer than work may hold the event loop at a stretch, in ms. */
const longMs = 11

/** Two who take long, and a promise of when something was brought so many times. */
function crowd(times: number) {
  const brought: string[] = []
  const { promise: done, resolve } = Promise.withResolvers<void>()
  const fanOut = new FanOut(new Set(['a', 'b']), (one, services) => {
    for (const until = performance.now() + longMs; performance.now() < until; );
    brought.push(`${one} ${[...services].sort().join()}`)
    if (brought.length === times) resolve()
  })
  return { fanOut, brought, done }
}

describe('a change', () => {
  it('is brought to all, with the event loop going on in between', async () => {
    const { fanOut, brought, done } = crowd(2)
    fanOut.onChange(['x', 'y'])
    expect(brought).toEqual(['a x,y'])
    await done
    expect(brought).toEqual(['a x,y', 'b x,y'])
  })

  it('that comes during a round is brought in the next, together with all others that do', async () => {
    const { fanOut, brought, done } = crowd(4)
    fanOut.onChange(['x'])
    fanOut.onChange(['y'])
    fanOut.onChange(['z'])
    fanOut.onChange(['y'])
    await done
    expect(brought).toEqual(['a x', 'b x', 'a y,z', 'b y,z'])
  })

  it('of no endpoints is brought too', async () => {
    const { fanOut, brought, done } = crowd(2)
    fanOut.onChange([])
    await done
    expect(brought).toEqual(['a ', 'b '])
  })
})
