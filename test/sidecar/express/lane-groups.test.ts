import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import type { Lane } from '../../../sidecar/express/lane.ts'
import { LaneGroups, maxStreams } from '../../../sidecar/express/lane-groups.ts'
import type { LaneRoute } from '../../../sidecar/express/messages.ts'

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['performance'] })
})

afterEach(() => {
  vi.useRealTimers()
})

/** As much of a lane as a group looks at. */
function lane(route: LaneRoute, streams = 0, peer = 'a', isDoubted = false): Lane {
  const users = new Map(Array.from({ length: streams }, (_, i) => [i, undefined]))
  return { peer, route, users, pulse: { isDoubted } } as unknown as Lane
}

describe('the lane for a new stream', () => {
  const [direct, punched, relayed] = [lane('direct'), lane('punched'), lane('relayed')]
  const full = lane('direct', maxStreams)

  it.each<[string, Lane[], Lane | undefined]>([
    ['there is none', [], undefined],
    ['there is one', [direct], direct],
    ['there is a better route', [relayed, direct, punched], direct],
    ['the better one came first', [punched, relayed], punched],
    ['the best is full', [full, relayed], relayed],
    ['all are full', [full, lane('relayed', maxStreams)], undefined],
    ['one has one place left', [lane('direct', maxStreams - 1)], lane('direct', maxStreams - 1)],
    ['the best has a peer that may be dead', [lane('direct', 0, 'a', true), relayed], relayed],
    ['another peer has one', [lane('direct', 0, 'b')], undefined],
  ])('is chosen where %s', (_title, lanes, chosen) => {
    const groups = new LaneGroups()
    for (const l of lanes) groups.add(l)
    const picked = groups.pick('a')
    expect({ route: picked?.route, streams: picked?.users.size }).toEqual({
      route: chosen?.route,
      streams: chosen?.users.size,
    })
  })

  it('is not one that was taken away, and others stay', () => {
    const groups = new LaneGroups()
    for (const l of [direct, punched]) groups.add(l)
    groups.delete(direct)
    groups.delete(relayed)
    expect(groups.pick('a')).toBe(punched)
    groups.delete(punched)
    groups.delete(punched)
    expect(groups.pick('a')).toBeUndefined()
  })

  it('is left out once a second where a better route may be found, and never on the best', () => {
    const groups = new LaneGroups()
    groups.add(relayed)
    groups.add(lane('direct', 0, 'b'))
    const picks = () => [groups.pick('a'), groups.pick('a')]
    expect(picks()).toEqual([relayed, relayed])
    vi.advanceTimersByTime(1_000)
    expect(groups.pick('b')?.route).toBe('direct')
    expect(picks()).toEqual([undefined, relayed])
    vi.advanceTimersByTime(999)
    expect(picks()).toEqual([relayed, relayed])
    vi.advanceTimersByTime(1)
    expect(picks()).toEqual([undefined, relayed])
  })
})
