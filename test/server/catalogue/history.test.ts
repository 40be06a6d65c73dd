import { describe, expect, it } from 'vitest'
import {
  changedEndpoints,
  changedPods,
  diffIndex,
  IndexHistory,
  type IndexMessage,
} from '../../../server/catalogue/history.ts'
import type { PodRecord } from '../../../server/catalogue/source.ts'
import { type Endpoint, idOf, type ServiceEntry } from '../../../sidecar/shared/catalogue.ts'
import { decodeServerMessage } from '../../../sidecar/shared/wire.ts'
import { Seeded } from '../seeded.ts'

type Services = ReadonlyMap<string, ServiceEntry>

const service = (name: string, port: number): ServiceEntry => ({
  namespace: 'n',
  name,
  kind: 'clusterIP',
  clusterIPs: ['10.0.0.1'],
  ports: [{ name: '', port, protocol: 'TCP' }],
  affinitySeconds: 0,
  localOnly: false,
  preferClose: false,
  bypass: false,
  balancer: 'round-robin',
})

/** The next state: some services come, go or change; the others are the very same objects. */
function evolve(random: Seeded, services: Services): Services {
  const next = new Map(services)
  for (let i = random.below(5); i > 0; i--) {
    const name = `s-${random.below(12)}`
    if (random.below(3) === 0) next.delete(`n/${name}`)
    else next.set(`n/${name}`, service(name, 1 + random.below(3)))
  }
  return next
}

function apply(state: Services, message: IndexMessage): Services {
  const decoded = decodeServerMessage(JSON.stringify(message)) as IndexMessage
  const next = new Map(message.full ? [] : state)
  for (const id of decoded.removes) next.delete(id)
  for (const entry of decoded.upserts) next.set(idOf(entry), entry)
  return next
}

const sorted = (services: Services) => [...services].sort(([a], [b]) => (a < b ? -1 : 1))
const empty: Services = new Map()

describe('the history of the index', () => {
  it.each(Array.from({ length: 30 }, (_, i) => i + 1))(
    'brings everyone to the present state, by each delta and from each version (seed %i)',
    (seed) => {
      const random = new Seeded(seed)
      let services = evolve(random, empty)
      const history = new IndexHistory(services)
      let follower = apply(empty, history.since(undefined))
      const seen = new Map([[history.version, services]])
      for (let step = 0; step < 60; step++) {
        services = evolve(random, services)
        const before = history.version
        const delta = history.advance(services)
        if (delta === undefined) expect(history.version).toBe(before)
        else {
          expect(delta).toMatchObject({ version: before + 1, full: false, epoch: history.epoch })
          follower = apply(follower, delta)
        }
        expect(sorted(follower)).toEqual(sorted(services))
        seen.set(history.version, services)
      }
      for (const [version, state] of seen) {
        const message = history.since({ epoch: history.epoch, version })
        expect(message).toMatchObject({ full: false, version: history.version })
        expect(sorted(apply(state, message))).toEqual(sorted(services))
      }
    },
  )

  it('begins with the whole index', () => {
    const history = new IndexHistory(new Map([['n/a', service('a', 1)]]))
    const { epoch, version } = history
    expect(history.since(undefined)).toEqual({
      type: 'index',
      epoch,
      version,
      full: true,
      upserts: [service('a', 1)],
      removes: [],
    })
  })

  it('sends nothing but the version to who is up to date', () => {
    const history = new IndexHistory(new Map([['n/a', service('a', 1)]]))
    history.advance(new Map([['n/a', service('a', 2)]]))
    const { epoch, version } = history
    expect(history.since({ epoch, version })).toMatchObject({
      version,
      full: false,
      upserts: [],
      removes: [],
    })
  })

  it('says once what changed often', () => {
    const history = new IndexHistory(new Map([['n/a', service('a', 1)]]))
    const { epoch, version } = history
    for (let port = 2; port < 50; port++) history.advance(new Map([['n/a', service('a', port)]]))
    history.advance(new Map([['n/b', service('b', 1)]]))
    expect(history.since({ epoch, version })).toMatchObject({ upserts: [service('b', 1)], removes: ['n/a'] })
  })

  it('sends the whole index to who is too old, of another epoch or ahead of it', () => {
    const history = new IndexHistory(empty)
    const { epoch, version: first } = history
    for (let port = 1; port <= 1_100; port++) history.advance(new Map([['n/a', service('a', port)]]))
    const now = history.version
    const fullOf = (known: { epoch: string; version: number }) => history.since(known).full
    expect([first, now - 1_001].map((version) => fullOf({ epoch, version }))).toEqual([true, true])
    expect([now - 1_000, now - 1, now].map((version) => fullOf({ epoch, version }))).toEqual([
      false,
      false,
      false,
    ])
    expect([now + 1, Number.MAX_SAFE_INTEGER, 0].map((version) => fullOf({ epoch, version }))).toEqual([
      true,
      true,
      true,
    ])
    expect(fullOf({ epoch: 'other', version: now })).toBe(true)
    expect(new IndexHistory(empty).epoch).not.toBe(epoch)
  })

  it('is not moved by a state that is the same', () => {
    const services = new Map([['n/a', service('a', 1)]])
    const history = new IndexHistory(services)
    expect(history.advance(new Map(services))).toBeUndefined()
    expect(history.version).toBe(new IndexHistory(services).version)
  })
})

describe('the difference of two states', () => {
  it('goes by the identity of the entries', () => {
    const [same, old, changed] = [service('a', 1), service('b', 1), service('b', 2)]
    const [before, after] = [
      new Map([
        ['n/a', same],
        ['n/b', old],
        ['n/c', old],
      ]),
      new Map([
        ['n/a', same],
        ['n/b', changed],
        ['n/d', old],
      ]),
    ]
    expect(diffIndex(before, after)).toEqual({ upserts: [changed, old], removes: ['n/c'] })
  })

  it('names the services whose endpoints came, went or changed', () => {
    const [kept, old] = [[], []]
    const before = new Map([
      ['n/a', kept],
      ['n/b', old],
      ['n/c', old],
    ])
    const after = new Map([
      ['n/a', kept],
      ['n/b', []],
      ['n/d', old],
    ])
    expect(changedEndpoints(before, after).sort()).toEqual(['n/b', 'n/c', 'n/d'])
  })

  it('names the pods that changed, came, or are or were endpoints of what changed', () => {
    const pod = (uid: string) => [uid, { uid }] as unknown as [string, PodRecord]
    const at = (...uids: (string | undefined)[]) => uids.map((podUid) => ({ podUid }) as Endpoint)
    const [kept, old, changed, fresh] = [pod('kept'), pod('changed'), pod('changed'), pod('new')]
    const before = {
      pods: new Map([kept, old, pod('gone')]),
      endpoints: new Map([
        ['n/a', at('was', 'stays')],
        ['n/b', at('b')],
      ]),
    }
    const after = {
      pods: new Map([kept, changed, fresh]),
      endpoints: new Map([
        ['n/a', at('is', 'stays', undefined)],
        ['n/b', at('b')],
      ]),
    }
    expect([...changedPods(['n/a', 'n/x'], before, { ...after, pods: before.pods })]).toEqual([
      'was',
      'stays',
      'is',
    ])
    expect([...changedPods([], before, after)].sort()).toEqual(['changed', 'new'])
  })
})
