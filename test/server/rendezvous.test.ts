import { describe, expect, it } from 'vitest'
import {
  candidatesOf,
  isWorthTrying,
  type Manner,
  mannerOf,
  type NatKnowledge,
  openingsOf,
  type Party,
} from '../../server/rendezvous.ts'

const cone = { mapping: 'independent', portPreserved: true, proven: false } as const
const kinds = {
  full: { ...cone, filtering: 'open' },
  address: { ...cone, filtering: 'open' },
  port: { ...cone, filtering: 'restricted' },
  symmetric: { mapping: 'dependent', portPreserved: false, proven: false, filtering: 'restricted' },
} satisfies Record<string, NatKnowledge>
type Kind = keyof typeof kinds

function party(nat: NatKnowledge, site: number, more: Partial<Party> = {}): Party {
  return {
    nat,
    localPort: 40_000 + site,
    observed: { address: `203.0.113.${site}`, port: 50_000 + site },
    podIPs: [`10.244.${site}.2`],
    hostIPs: [`192.168.${site}.2`],
    roundTripMs: 0,
    ...more,
  }
}

/** Rows are the one who asks. */
const table: Record<Kind, Record<Kind, Manner>> = {
  full: { full: 'both', address: 'both', port: 'both', symmetric: 'dialer-listens' },
  address: { full: 'both', address: 'both', port: 'both', symmetric: 'dialer-listens' },
  port: { full: 'both', address: 'both', port: 'both', symmetric: 'hopeless' },
  symmetric: {
    full: 'acceptor-listens',
    address: 'acceptor-listens',
    port: 'hopeless',
    symmetric: 'hopeless',
  },
}
const names = Object.keys(kinds) as Kind[]
const pairs = names.flatMap((a) => names.map((b) => ({ a, b, manner: table[a][b] })))

describe('how two NATs are crossed', () => {
  it.each(pairs)('$a and $b: $manner', ({ a, b, manner }) => {
    expect(mannerOf(party(kinds[a], 1), party(kinds[b], 2))).toBe(manner)
  })

  it.each(pairs)('nothing is hopeless between $a and $b behind one address', ({ a, b }) => {
    const observed = { address: '203.0.113.1', port: 1 }
    expect(mannerOf(party(kinds[a], 1, { observed }), party(kinds[b], 2, { observed }))).not.toBe('hopeless')
  })

  it('tries where it is not known yet whom the cone lets in', () => {
    const unknown = party({ ...cone, filtering: 'unknown' }, 1)
    expect(mannerOf(unknown, party(kinds.symmetric, 2))).toBe('dialer-listens')
    expect(mannerOf(party(kinds.symmetric, 2), unknown)).toBe('acceptor-listens')
  })

  it('takes a pod without NAT for one that can be dialled', () => {
    const none = party({ mapping: 'none', portPreserved: true, proven: true, filtering: 'unknown' }, 1)
    expect(mannerOf(none, party(kinds.port, 2))).toBe('both')
    expect(mannerOf(party(kinds.symmetric, 2), none)).toBe('acceptor-listens')
  })

  it('tries a hopeless pair now and then, and any other always', () => {
    const tried = (manner: Manner) => Array.from({ length: 8 }, (_, i) => isWorthTrying(manner, i))
    expect(tried('hopeless')).toEqual([false, false, false, true, false, false, false, true])
    expect(tried('both')).toEqual(Array(8).fill(true))
  })
})

describe('what the two sides are told', () => {
  const nonces = { ask: 'a'.repeat(32), answer: 'b'.repeat(32) }
  const told = (a: Party, b: Party) => openingsOf(a, b, nonces)

  it('is to start at the same moment, though one hears of it later', () => {
    const { dialer, acceptor } = told(
      party(kinds.port, 1, { roundTripMs: 200 }),
      party(kinds.port, 2, { roundTripMs: 20 }),
    )
    expect(acceptor.startInMs - dialer.startInMs).toBe((200 - 20) / 2)
    expect(dialer.startInMs).toBeGreaterThan(0)
  })

  it('is to wait for an answer longer than a round trip before a dial is begun anew', () => {
    const far = told(party(kinds.port, 1, { roundTripMs: 200 }), party(kinds.port, 2, { roundTripMs: 200 }))
    expect(far.dialer.retryMs).toBeGreaterThan(400)
    expect(told(party(kinds.port, 1), party(kinds.port, 2)).dialer.retryMs).toBe(100)
  })

  it.each(
    pairs.map(({ a, b }) => ({
      a,
      b,
      listens: a !== 'symmetric' && b === 'symmetric' ? 'dialer' : 'acceptor',
    })),
  )('lets one side listen between $a and $b, the $listens: never a symmetric one before a cone', (row) => {
    const { dialer, acceptor } = told(party(kinds[row.a], 1), party(kinds[row.b], 2))
    const listening = [dialer, acceptor].filter((o) => o.listenAfterMs !== undefined)
    expect(listening.map((o) => o.role)).toEqual([row.listens])
    const soon = row.a !== row.b && [row.a, row.b].includes('symmetric') && ![row.a, row.b].includes('port')
    expect((listening[0]?.listenAfterMs ?? 0) < 100).toBe(soon)
  })

  it('is within the bounds of the wire, however slow the two are', () => {
    const { dialer } = told(
      party(kinds.port, 1, { roundTripMs: 2_000 }),
      party(kinds.port, 2, { roundTripMs: 2_000 }),
    )
    expect(dialer).toMatchObject({ retryMs: 1_000, windowMs: 4_000 })
  })

  it('has the same words for both, and one role each', () => {
    const { dialer, acceptor } = told(party(kinds.full, 1), party(kinds.full, 2))
    expect([dialer.role, acceptor.role]).toEqual(['dialer', 'acceptor'])
    expect([dialer.ask, dialer.answer]).toEqual([acceptor.ask, acceptor.answer])
  })
})

describe('where a peer may be met', () => {
  const peer = party(kinds.port, 2)

  it('is where the server sees it, and at its node and its own address on the port that it has there', () => {
    expect(candidatesOf(peer, party(kinds.port, 1))).toEqual([
      { address: '203.0.113.2', port: 50_002 },
      { address: '192.168.2.2', port: 40_002 },
      { address: '10.244.2.2', port: 40_002 },
    ])
  })

  it('is nowhere that is ourselves: the same addresses exist at other sites', () => {
    const own = party(kinds.port, 1, { podIPs: peer.podIPs, hostIPs: ['192.168.2.2'] })
    expect(candidatesOf(peer, own)).toEqual([{ address: '203.0.113.2', port: 50_002 }])
  })

  it('is each place once', () => {
    const bare = party(kinds.full, 2, {
      observed: { address: '10.244.2.2', port: 40_002 },
      hostIPs: [],
    })
    expect(candidatesOf(bare, party(kinds.port, 1))).toEqual([{ address: '10.244.2.2', port: 40_002 }])
  })
})
