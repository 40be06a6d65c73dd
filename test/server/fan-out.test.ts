import { describe, expect, it } from 'vitest'
import { FanOut } from '../../server/fan-out.ts'

/** Longer than work may hold the event loop at a stretch, in ms. */
const longMs = 11

const of = (services: string[], pods: string[] = []) => ({ services, pods })

/** Two who take long, and a promise of when something was brought so many times. */
function crowd(times: number) {
  const brought: string[] = []
  const { promise: done, resolve } = Promise.withResolvers<void>()
  const fanOut = new FanOut(new Set(['a', 'b']), (one, { services, pods }) => {
    for (const until = performance.now() + longMs; performance.now() < until; );
    brought.push([one, ...[...services, ...pods].sort()].join(' '))
    if (brought.length === times) resolve()
  })
  return { fanOut, brought, done }
}

describe('a change', () => {
  it('is brought to all, with the event loop going on in between', async () => {
    const { fanOut, brought, done } = crowd(2)
    fanOut.onChange(of(['x', 'y'], ['pod']))
    expect(brought).toEqual(['a pod x y'])
    expect(fanOut.isRunning).toBe(true)
    await done
    expect(brought).toEqual(['a pod x y', 'b pod x y'])
    await expect.poll(() => fanOut.isRunning).toBe(false)
  })

  it('that comes during a round is brought in the next, together with all others that do', async () => {
    const { fanOut, brought, done } = crowd(4)
    fanOut.onChange(of(['x']))
    fanOut.onChange(of(['y']))
    fanOut.onChange(of(['z'], ['pod']))
    fanOut.onChange(of(['y'], ['pod']))
    await done
    expect(brought).toEqual(['a x', 'b x', 'a pod y z', 'b pod y z'])
  })

  it('of no endpoints is brought too', async () => {
    const { fanOut, brought, done } = crowd(2)
    fanOut.onChange(of([]))
    await done
    expect(brought).toEqual(['a', 'b'])
  })
})
