import { afterEach, expect, it, vi } from 'vitest'
import { Pioneers } from '../../../sidecar/express/pioneers.ts'

afterEach(() => {
  vi.useRealTimers()
})

it('whoever follows waits as long as a lane to a far peer takes, and not for ever', async () => {
  vi.useFakeTimers()
  const pioneers = new Pioneers()
  expect(pioneers.of('a')).toBeUndefined()
  expect(pioneers.add('a')).toBe(true)
  const told: boolean[] = []
  void pioneers.of('a')?.then((mayFollow) => told.push(mayFollow))
  await vi.advanceTimersByTimeAsync(1_200) // four round trips of 300 ms
  expect(told).toEqual([])
  await vi.advanceTimersByTimeAsync(1_000)
  expect(told).toEqual([false])
  expect(pioneers.of('a'), 'the next is a first one again').toBeUndefined()
})

it.each([true, false])('what the first one has found out is told to all at once: %s', async (mayFollow) => {
  const pioneers = new Pioneers()
  pioneers.add('a')
  const all = Promise.all([pioneers.of('a'), pioneers.of('a')])
  pioneers.settle('b', !mayFollow)
  pioneers.settle('a', mayFollow)
  pioneers.settle('a', !mayFollow)
  expect(await all).toEqual([mayFollow, mayFollow])
})

it('there is a bound to what can be waited for', () => {
  vi.useFakeTimers()
  const pioneers = new Pioneers()
  for (let i = 0; i < 1_000; i++) expect(pioneers.add(String(i))).toBe(true)
  expect(pioneers.add('one more')).toBe(false)
  expect(pioneers.of('one more')).toBeUndefined()
})
