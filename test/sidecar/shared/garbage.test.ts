import { expect, it } from 'vitest'
import { giveBackGarbage } from '../../../sidecar/shared/garbage.ts'

it('what nothing refers to any more is gone at once, and what something refers to is not', async () => {
  let garbage: object | undefined = { big: new Array(100_000).fill(1) }
  const kept = { big: new Array(100_000).fill(2) }
  const [lost, held] = [new WeakRef(garbage), new WeakRef(kept)]
  garbage = undefined
  await new Promise((resolve) => setImmediate(resolve)) // a WeakRef keeps its target for the turn that made it
  giveBackGarbage()
  expect(lost.deref()).toBe(undefined)
  expect(held.deref()).toBe(kept)
  expect('gc' in globalThis).toBe(false)
})
