import { expect, it } from 'vitest'
import { Gate } from '../../server/gate.ts'

it('lets only so many in at a time, in the order of their coming', async () => {
  const gate = new Gate(2)
  const doors = Array.from({ length: 5 }, () => Promise.withResolvers<void>())
  const entered: number[] = []
  const all = doors.map(({ promise }, i) =>
    gate.run(() => {
      entered.push(i)
      return promise
    }),
  )
  expect(entered).toEqual([0, 1])
  doors[1]?.resolve()
  await all[1]
  await expect.poll(() => entered).toEqual([0, 1, 2])
  for (const door of doors) door.resolve()
  await Promise.all(all)
  expect(entered).toEqual([0, 1, 2, 3, 4])
  expect(gate.waiting).toBe(0)
})

it('gives the place of work that failed to the next', async () => {
  const gate = new Gate(1)
  const failing = gate.run(() => Promise.reject(new Error('broken')))
  const next = gate.run(async () => 'served')
  await expect(failing).rejects.toThrow('broken')
  expect(await next).toBe('served')
})
