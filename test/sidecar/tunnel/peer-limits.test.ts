import { expect, it } from 'vitest'
import { PeerLimits, peerLimits } from '../../../sidecar/tunnel/peer-limits.ts'

const { newStreams, excess, givenUp } = peerLimits
/** The buckets are full then. A whole number: with fractions a second is a little less than a second now and then. */
const now = Math.ceil(performance.now()) + 1_000
const count = (limits: PeerLimits, podUid: string, times: number, at = now) => {
  const answers = { true: 0, false: 0, abuse: 0 }
  for (let i = 0; i < times; i++) answers[`${limits.mayOpen(podUid, at)}`]++
  return answers
}

it('a peer may open so many streams at once, is refused so many more, and then it abuses', () => {
  const answers = count(new PeerLimits(), 'a', newStreams.burst + excess.burst + 1)
  expect(answers).toEqual({ true: newStreams.burst, false: excess.burst, abuse: 1 })
})

it('a second later it may open as many as come in a second', () => {
  const limits = new PeerLimits()
  count(limits, 'a', newStreams.burst)
  expect(count(limits, 'a', newStreams.perSecond + 1, now + 1_000)).toEqual({
    true: newStreams.perSecond,
    false: 1,
    abuse: 0,
  })
})

it('what one peer has opened is not counted for another', () => {
  const limits = new PeerLimits()
  count(limits, 'a', newStreams.burst + excess.burst)
  expect(limits.mayOpen('b', now)).toBe(true)
})

it('it may give up so many that were not answered, at once and in a second', () => {
  const limits = new PeerLimits()
  const giveUp = (times: number, at: number) =>
    Array.from({ length: times }, () => limits.mayGiveUp('a', at)).filter(Boolean).length
  expect(giveUp(givenUp.burst + 1, now)).toBe(givenUp.burst)
  expect(giveUp(givenUp.perSecond + 1, now + 1_000)).toBe(givenUp.perSecond)
  expect([limits.mayOpen('a', now), limits.mayGiveUp('b', now)]).toEqual([true, true])
})
