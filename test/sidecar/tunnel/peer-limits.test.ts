import { expect, it } from 'vitest'
import { PeerLimits, peerLimits } from '../../../sidecar/tunnel/peer-limits.ts'

const { newStreams, excess } = peerLimits
const count = (limits: PeerLimits, podUid: string, times: number, now: number) => {
  const answers = { true: 0, false: 0, abuse: 0 }
  for (let i = 0; i < times; i++) answers[`${limits.mayOpen(podUid, now)}`]++
  return answers
}

it('a peer may open so many streams at once, is refused so many more, and then it abuses', () => {
  const now = performance.now() + 1_000 // the buckets are full then
  const answers = count(new PeerLimits(), 'a', newStreams.burst + excess.burst + 1, now)
  expect(answers).toEqual({ true: newStreams.burst, false: excess.burst, abuse: 1 })
})

it('a second later it may open as many as come in a second', () => {
  const limits = new PeerLimits()
  const now = performance.now() + 1_000 // the buckets are full then
  count(limits, 'a', newStreams.burst, now)
  expect(count(limits, 'a', newStreams.perSecond + 1, now + 1_000)).toEqual({
    true: newStreams.perSecond,
    false: 1,
    abuse: 0,
  })
})

it('what one peer has opened is not counted for another', () => {
  const limits = new PeerLimits()
  const now = performance.now() + 1_000 // the buckets are full then
  count(limits, 'a', newStreams.burst + excess.burst, now)
  expect(limits.mayOpen('b', now)).toBe(true)
})
