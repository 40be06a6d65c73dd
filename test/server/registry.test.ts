import { describe, expect, it } from 'vitest'
import { Registry } from '../../server/registry.ts'

const presence = (podUid: string) => ({ podUid, send: () => undefined, end: () => undefined })
const returnMs = 50

describe('a registry', () => {
  const startedLongAgo = () => new Registry(returnMs, performance.now() - returnMs)

  it.each([
    ['was never here', () => undefined],
    ['said bye', (r: Registry) => r.leave(taken(r))],
    ['left long ago', (r: Registry) => r.leave(taken(r), true, performance.now() - returnMs)],
  ])('does not wait for a pod that %s', async (_how, before) => {
    const registry = startedLongAgo()
    before(registry)
    const found = registry.find('a')
    registry.take(presence('a'))
    expect(await found).toBeUndefined()
  })

  it.each([
    ['when it has just started itself', () => new Registry(returnMs)],
    [
      'that lost its channel',
      () => {
        const registry = startedLongAgo()
        registry.leave(taken(registry), true)
        return registry
      },
    ],
  ])('waits for a pod %s', async (_when, made) => {
    const registry = made()
    const found = registry.find('a')
    const back = presence('a')
    registry.take(back)
    expect(await found).toBe(back)
  })

  it('gives up on a pod that does not come back', async () => {
    expect(await new Registry(returnMs).find('a')).toBeUndefined()
  })

  it('keeps a pod’s place for its newest channel', () => {
    const registry = startedLongAgo()
    const [first, second] = [presence('a'), presence('a')]
    expect([registry.take(first), registry.take(second)]).toEqual([undefined, first])
    registry.leave(first)
    expect([registry.size, registry.version]).toEqual([1, 1])
  })
})

function taken(registry: Registry) {
  const presenceOfA = presence('a')
  registry.take(presenceOfA)
  return presenceOfA
}
