import { describe, expect, it } from 'vitest'
import { PeerMemory, steadyMs } from '../../../sidecar/routing/peers.ts'
import {
  headStartMs,
  type PeerKnowledge,
  plan,
  punchAfterMs,
  type RouteKind,
} from '../../../sidecar/routing/plan.ts'

const self = { podUid: 'me', podIPs: ['10.244.3.2', 'fd00::3:2'] }
const peer = { podUid: 'peer', sidecar: true, addresses: ['10.244.2.2'] }
const now = 1_000

function known(change: Partial<PeerKnowledge> = {}): PeerKnowledge {
  return { sessions: new Set<RouteKind>(), blockedUntil: {}, relayAvailable: true, ...change }
}

describe('the plan of routes', () => {
  const direct = { route: 'direct', afterMs: 0 }
  const relayed = { route: 'relayed', afterMs: 0 }
  const relayedLater = { route: 'relayed', afterMs: headStartMs }
  const probe = { route: 'direct', afterMs: 0, background: true }
  const punched = { route: 'punched', afterMs: 0 }
  const punch = { route: 'punched', afterMs: 0, background: true }
  const punchLater = { route: 'punched', afterMs: punchAfterMs, background: true }
  const session = (...kinds: RouteKind[]) => new Set<RouteKind>(kinds)

  it.each([
    [
      'a pod that dials itself stays local',
      { ...peer, podUid: 'me' },
      known(),
      [{ route: 'local', afterMs: 0 }],
    ],
    [
      'an endpoint without sidecar is dialled plainly',
      { ...peer, sidecar: false },
      known(),
      [{ route: 'plain', afterMs: 0 }],
    ],
    [
      'an endpoint that is no pod is dialled plainly',
      { sidecar: false, addresses: ['192.0.2.1'] },
      known(),
      [{ route: 'plain', afterMs: 0 }],
    ],
    [
      'a new peer gets direct with a head start over the relay, and is punched to if that was in vain',
      peer,
      known(),
      [direct, relayedLater, punchLater],
    ],
    [
      'without the server the relay waits for it behind direct',
      peer,
      known({ relayAvailable: false }),
      [direct, relayedLater],
    ],
    [
      'a live relayed session is used at once, also without the server, while direct is tried behind it',
      peer,
      known({ relayAvailable: false, sessions: session('relayed') }),
      [relayed, probe],
    ],
    [
      'an address that is our own cannot be dialled directly',
      { ...peer, addresses: ['10.244.3.2'] },
      known(),
      [relayed, punch],
    ],
    [
      'one foreign address of two is enough for direct',
      { ...peer, addresses: ['10.244.3.2', 'fd00::9'] },
      known(),
      [direct, relayedLater, punchLater],
    ],
    [
      'direct that failed lately rests, and the relay is first',
      peer,
      known({ blockedUntil: { direct: now + 1 } }),
      [relayed, punch],
    ],
    [
      'direct that rests is tried all the same while the server is away',
      peer,
      known({ blockedUntil: { direct: now + 1 }, relayAvailable: false }),
      [direct, relayedLater],
    ],
    [
      'direct that has rested is tried first again',
      peer,
      known({ blockedUntil: { direct: now } }),
      [direct, relayedLater, punchLater],
    ],
    [
      'direct that has rested is tried behind a live relayed session, and so is punching',
      peer,
      known({ blockedUntil: { direct: now }, sessions: session('relayed') }),
      [relayed, probe, punch],
    ],
    [
      'direct that rests is not tried behind a live relayed session',
      peer,
      known({ blockedUntil: { direct: now + 1 }, sessions: session('relayed') }),
      [relayed, punch],
    ],
    [
      'punching that failed lately rests',
      peer,
      known({ blockedUntil: { direct: now + 1, punched: now + 1 }, sessions: session('relayed') }),
      [relayed],
    ],
    [
      'punching that rests is not behind a new peer either',
      peer,
      known({ blockedUntil: { punched: now + 1 } }),
      [direct, relayedLater],
    ],
    [
      'a live punched session is better than a relayed one, and nothing is punched beside it',
      peer,
      known({ blockedUntil: { direct: now + 1 }, sessions: session('punched', 'relayed') }),
      [punched, relayedLater],
    ],
    [
      'a live punched session is used without the server, while direct is tried behind it',
      peer,
      known({ relayAvailable: false, sessions: session('punched') }),
      [punched, relayedLater, probe],
    ],
    [
      'a live direct session is the best of all',
      peer,
      known({ sessions: session('direct', 'punched', 'relayed') }),
      [direct, relayedLater],
    ],
    [
      'a live direct session forgets old failures',
      peer,
      known({ blockedUntil: { direct: now + 1 }, sessions: session('direct') }),
      [direct, relayedLater],
    ],
    [
      'our own address everywhere leaves the relay, also while the server is away',
      { ...peer, addresses: ['10.244.3.2'] },
      known({ relayAvailable: false }),
      [relayed],
    ],
  ])('%s', (_title, endpoint, knowledge, steps) => {
    expect(plan(endpoint, self, knowledge, now)).toEqual(steps)
  })

  it('never dials a pod with a sidecar in the clear', () => {
    for (const relayAvailable of [true, false]) {
      for (const blocked of [{}, { direct: 0 }, { direct: now + 1 }]) {
        for (const addresses of [[], ['10.244.2.2'], self.podIPs]) {
          const steps = plan(
            { ...peer, addresses },
            self,
            known({ relayAvailable, blockedUntil: blocked }),
            now,
          )
          expect(steps.every((s) => ['direct', 'punched', 'relayed'].includes(s.route))).toBe(true)
        }
      }
    }
  })
})

describe('the memory of peers', () => {
  it('lets a failed route rest longer with each failure, within bounds, and forgets at success', () => {
    const memory = new PeerMemory(() => 0.999)
    const rests = Array.from({ length: 12 }, () => {
      memory.failed('peer', 'direct', now)
      return (memory.blockedUntil('peer').direct ?? 0) - now
    })
    expect(rests[0]).toBeGreaterThan(2_500)
    for (let i = 1; i < rests.length; i++) expect(rests[i]).toBeGreaterThanOrEqual(rests[i - 1] ?? 0)
    expect(Math.max(...rests)).toBeLessThan(5 * 60_000 + 2_500)
    memory.succeeded('peer', 'direct')
    expect(memory.blockedUntil('peer')).toEqual({})
  })

  it('never lets a failed route be tried at once, however the jitter falls', () => {
    const memory = new PeerMemory(() => 0)
    memory.failed('peer', 'direct', now)
    expect(memory.blockedUntil('peer').direct).toBe(now + 2_500)
  })

  it('counts a session that ended young as a failure of its route, success or not', () => {
    const memory = new PeerMemory(() => 0.999)
    const rests = Array.from({ length: 4 }, () => {
      memory.succeeded('peer', 'punched')
      expect(memory.blockedUntil('peer')).toEqual({})
      memory.ended('peer', 'punched', steadyMs - 1, now)
      return (memory.blockedUntil('peer').punched ?? 0) - now
    })
    for (let i = 1; i < rests.length; i++) expect(rests[i]).toBeGreaterThan(rests[i - 1] ?? 0)
    expect(memory.failures('peer', 'punched')).toBe(4)
    memory.ended('peer', 'punched', steadyMs, now)
    expect(memory.failures('peer', 'punched')).toBe(0)
    expect(memory.blockedUntil('peer')).toEqual({})
  })

  it('is bounded', () => {
    const memory = new PeerMemory()
    for (let i = 0; i < 6_000; i++) memory.failed(`peer-${i}`, 'direct', now)
    expect(memory.blockedUntil('peer-0')).toEqual({})
    expect(memory.blockedUntil('peer-5999').direct).toBeGreaterThan(now)
  })
})
