import { describe, expect, it } from 'vitest'
import { Heartbeat } from '../../server/heartbeat.ts'

/** What comes in each of the next `turns`. */
const turns = (heartbeat: Heartbeat<number>, count: number) =>
  Array.from({ length: count }, () => [...heartbeat.next()])

describe('a heartbeat', () => {
  it('has every one come once in a round, always at the same place of it, and about as many at each', () => {
    const heartbeat = new Heartbeat<number>(4)
    for (let i = 0; i < 10; i++) heartbeat.add(i)
    const round = turns(heartbeat, 4)
    expect(round.flat().sort((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    expect(round.map((part) => part.length)).toEqual([3, 3, 2, 2])
    expect(turns(heartbeat, 4)).toEqual(round)
  })

  it('moves nobody when others come and go, and fills what they leave', () => {
    const heartbeat = new Heartbeat<number>(3)
    for (let i = 0; i < 6; i++) heartbeat.add(i)
    const [first = [], second = [], third = []] = turns(heartbeat, 3)
    for (const one of second) heartbeat.delete(one)
    heartbeat.delete(99)
    heartbeat.add(6)
    heartbeat.add(7)
    expect(turns(heartbeat, 3)).toEqual([first, [6, 7], third])
  })

  it('waits for what is better to do, but only for a twentieth of a round', () => {
    const heartbeat = new Heartbeat<number>(40)
    for (let i = 0; i < 40; i++) heartbeat.add(i)
    const busy = Array.from({ length: 42 }, () => [...heartbeat.next(true)])
    expect(busy.slice(0, 3)).toEqual([[], [], [0]])
    expect(busy.flat()).toEqual(turns(heartbeat, 40).flat())
    expect([...heartbeat.next(true)]).toEqual([])
  })

  it('is still where nobody is', () => {
    expect(turns(new Heartbeat<number>(2), 3)).toEqual([[], [], []])
  })
})
