import { describe, expect, it } from 'vitest'
import { FanOut, type Subscriber } from '../../server/fan-out.ts'

class Listener implements Subscriber {
  readonly #name: string
  readonly #said: string[]
  /** How long each thing takes, in ms: beyond some ms the round gives the event loop its turn. */
  readonly #takesMs: number

  constructor(name: string, said: string[], takesMs: number) {
    this.#name = name
    this.#said = said
    this.#takesMs = takesMs
  }

  sendIndexChange(): void {
    this.say('index')
  }

  sendEndpoints(service: string): void {
    this.say(service)
  }

  say(what: string): void {
    for (const until = performance.now() + this.#takesMs; performance.now() < until; );
    this.#said.push(`${this.#name} ${what}`)
  }
}

/** Two, and a promise of when each has got what is its own so many times. */
function crowd(takesMs: number, rounds: number) {
  const said: string[] = []
  const [a, b] = [new Listener('a', said, takesMs), new Listener('b', said, takesMs)]
  const { promise: done, resolve } = Promise.withResolvers<void>()
  let selves = 0
  const fanOut = new FanOut<Listener>({
    subscribers: new Set([a, b]),
    followersOf: (service) => (service === 'x' ? [b] : service === 'y' ? [a, b] : []),
    sendSelf: (one) => {
      one.say('self')
      if (++selves === 2 * rounds) resolve()
    },
  })
  return { fanOut, said, done }
}

describe('a change', () => {
  it('reaches all by the index, followers by the endpoints, and each by what is its own', async () => {
    const { fanOut, said, done } = crowd(0, 1)
    fanOut.onChange(['x', 'unknown', 'y'])
    await done
    expect(said).toEqual(['a index', 'b index', 'b x', 'a y', 'b y', 'a self', 'b self'])
  })

  it('that comes during a round is brought in the next, together with all others that do', async () => {
    const { fanOut, said, done } = crowd(11, 2)
    fanOut.onChange(['x'])
    expect(said).toEqual(['a index'])
    fanOut.onChange(['y'])
    fanOut.onChange(['x'])
    fanOut.onChange(['y'])
    await done
    expect(said).toEqual([
      ...['a index', 'b index', 'b x', 'a self', 'b self'],
      ...['a index', 'b index', 'a y', 'b y', 'b x', 'a self', 'b self'],
    ])
  })
})
