import { describe, expect, it } from 'vitest'
import { Pulse } from '../../../sidecar/express/pulse.ts'

/** What is known at that moment, of a lane that began at 0 and whose ping at 100 was answered at 110. */
function knownAt(ms: number, { heardAt = 110, doubtedAt }: { heardAt?: number; doubtedAt?: number } = {}) {
  const pulse = new Pulse(0)
  pulse.pinged(100)
  pulse.answered(110)
  pulse.heard(heardAt)
  if (doubtedAt !== undefined) pulse.doubted(doubtedAt)
  return { dead: pulse.isDead(ms), doubted: pulse.isDoubted, ping: pulse.wantsPing(ms) }
}

describe('the peer of a lane', () => {
  it.each<[string, number, Parameters<typeof knownAt>[1], ReturnType<typeof knownAt>]>([
    ['was heard just now', 200, {}, { dead: false, doubted: false, ping: false }],
    ['is pinged every 2 s', 2_100, { heardAt: 2_000 }, { dead: false, doubted: false, ping: true }],
    ['may be silent for 6 s', 6_110, {}, { dead: false, doubted: false, ping: true }],
    ['is dead after that', 6_111, {}, { dead: true, doubted: false, ping: true }],
    ['is doubted', 1_300, { doubtedAt: 1_200 }, { dead: false, doubted: true, ping: false }],
    [
      'is doubted no more once it is heard',
      1_300,
      { doubtedAt: 1_200, heardAt: 1_250 },
      { dead: false, doubted: false, ping: false },
    ],
  ])('%s', (_title, ms, past, known) => {
    expect(knownAt(ms, past)).toEqual(known)
  })

  it.each([
    [1, 1_000],
    [400, 1_600],
    [3_000, 5_000],
  ])('whose pings take %d ms may leave an OPEN for %d ms without a sign of life', (tookMs, patienceMs) => {
    const pulse = new Pulse(0)
    pulse.pinged(10)
    pulse.answered(10 + tookMs)
    expect(pulse.patienceMs).toBe(patienceMs)
  })

  it('that was asked, or heard, is so since that moment', () => {
    const pulse = new Pulse(5)
    expect([pulse.heardSince(5), pulse.heardSince(4), pulse.pingedSince(5), pulse.pingedSince(6)]).toEqual([
      false,
      true,
      true,
      false,
    ])
  })
})
