import { describe, expect, it } from 'vitest'
import { IndexTexts } from '../../../server/catalogue/index-texts.ts'
import { Catalogue } from '../../../sidecar/services/catalogue.ts'
import type { ServiceEntry } from '../../../sidecar/shared/catalogue.ts'
import { decodeServerMessage, type ServerMessage } from '../../../sidecar/shared/wire.ts'

type IndexMessage = Extract<ServerMessage, { type: 'index' }>

const service = (name: string, port = 80): [string, ServiceEntry] => [
  `n/${name}`,
  {
    namespace: 'n',
    name,
    kind: 'clusterIP',
    clusterIPs: [],
    ports: [{ name: '', port, protocol: 'TCP' }],
    affinitySeconds: 0,
    localOnly: false,
    preferClose: false,
    bypass: false,
    balancer: 'round-robin',
  },
]
const read = (text: string) => decodeServerMessage(text) as IndexMessage

describe('the texts of the index', () => {
  it('bring who knows any version to the present one, however often and in which order they are asked for', () => {
    const [a, b, c] = [service('a'), service('b'), service('c')]
    const texts = new IndexTexts(new Map([a]))
    const clients = [new Catalogue(), new Catalogue(), new Catalogue()]
    const bring = (client: Catalogue) => client.applyIndex(read(texts.since(texts.knownTo(client.resume))))
    const [first, second, third] = clients as [Catalogue, Catalogue, Catalogue]
    expect([bring(first), bring(second)]).toEqual(['applied', 'applied'])
    texts.advance(new Map([a, b]))
    bring(first)
    texts.advance(new Map([service('a', 81), b, c]))
    for (const client of [first, second, third, first, second]) expect(bring(client)).toBe('applied')
    for (const client of clients) {
      const { version, services } = client.snapshot()
      const ports = Object.fromEntries(services.map((s) => [s.name, s.ports[0]?.port]))
      expect({ version, ports }).toEqual({ version: texts.version, ports: { a: 81, b: 80, c: 80 } })
    }
  })

  it.each([
    ['knows none', () => 0, true],
    ['knows one of another process', (texts: IndexTexts) => texts.knownTo({ epoch: 'x', version: 1 }), true],
    ['knows one that is yet to come', (texts: IndexTexts) => texts.version + 1, true],
    ['knows the one before', (texts: IndexTexts) => texts.version - 1, false],
    ['lacks nothing', (texts: IndexTexts) => texts.version, false],
  ])('are whole or not for who %s', (_who, known, full) => {
    const texts = new IndexTexts(new Map([service('a')]))
    texts.advance(new Map([service('b')]))
    expect(read(texts.since(known(texts)))).toMatchObject({ version: texts.version, full })
  })
})
