import { describe, expect, it } from 'vitest'
import { Shares } from '../../sidecar/shares.ts'

describe('shares', () => {
  it('are so many for each', () => {
    const shares = new Shares(2)
    expect(['a', 'a', 'a', 'b'].map((who) => shares.take(who) !== undefined)).toEqual([
      true,
      true,
      false,
      true,
    ])
    expect([shares.of('a'), shares.of('b'), shares.of('c')]).toEqual([2, 1, 0])
  })

  it('are so many for all', () => {
    const shares = new Shares(2, 3)
    const taken = ['a', 'a', 'b', 'c'].map((who) => shares.take(who))
    expect(taken.map((t) => t !== undefined)).toEqual([true, true, true, false])
    taken[0]?.()
    expect(shares.take('c')).toBeDefined()
  })

  it('are given back once', () => {
    const shares = new Shares(2)
    const [first] = [shares.take('a'), shares.take('a')]
    first?.()
    first?.()
    expect(shares.of('a')).toBe(1)
  })
})
