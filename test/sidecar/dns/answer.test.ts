import type { RecordType } from 'dns-packet'
import { describe, expect, it } from 'vitest'
import { answerHeadless, decide } from '../../../sidecar/dns/answer.ts'
import { setEndpoints, settings, viewOf } from './fixtures.ts'

const ask = (name: string, type: RecordType = 'A', loaded = true) =>
  decide({ name, type }, viewOf(loaded), settings)

/** The data of the answers, or `RCODE` where there are none, or the kind of the decision. */
function short(name: string, type: RecordType = 'A', loaded = true): unknown {
  const decision = ask(name, type, loaded)
  if (decision.kind !== 'reply') return decision.kind
  const { rcode, answers } = decision.reply
  return answers.length === 0 ? rcode : answers.map((a) => ('data' in a ? a.data : undefined))
}

describe('names', () => {
  it.each<[string, RecordType, unknown]>([
    ['web', 'A', ['10.96.0.1']],
    ['web.', 'A', ['10.96.0.1']],
    ['WEB.Default', 'A', ['10.96.0.1']],
    ['web.default.svc', 'A', ['10.96.0.1']],
    ['web.default.svc.cluster.local', 'A', ['10.96.0.1']],
    ['web.default.svc.cluster.local.', 'A', ['10.96.0.1']],
    ['db.shop', 'A', ['10.96.0.2']],
    ['db.shop', 'AAAA', ['fd00:10:96::2']],
    ['left-alone.shop', 'A', ['10.96.0.3']],
    ['web', 'AAAA', 'NOERROR'],
    ['web', 'TXT', 'NOERROR'],
    ['web.default.svc.cluster.local', 'MX', 'NOERROR'],
    ['db', 'A', 'forward'],
    ['nothing', 'A', 'forward'],
    ['nothing.default', 'A', 'forward'],
    ['example.com', 'A', 'forward'],
    ['www.example.com', 'AAAA', 'forward'],
    ['nothing.default.svc', 'A', 'NXDOMAIN'],
    ['nothing.default.svc.cluster.local', 'A', 'NXDOMAIN'],
    ['example.com.default.svc.cluster.local', 'A', 'NXDOMAIN'],
    ['example.com.svc.cluster.local', 'A', 'NXDOMAIN'],
    ['example.com.cluster.local', 'A', 'NXDOMAIN'],
    ['a.b.c.example.com.default.svc.cluster.local', 'AAAA', 'NXDOMAIN'],
    ['host.web.default.svc.cluster.local', 'A', 'NXDOMAIN'],
    ['cluster.local', 'A', 'NOERROR'],
    ['svc.cluster.local', 'A', 'NOERROR'],
    ['default.svc.cluster.local', 'A', 'NOERROR'],
    ['notcluster.local', 'A', 'forward'],
    ['out.shop', 'A', 'forward'],
    ['set.shop', 'A', 'headless'],
    ['set-0.set.shop.svc.cluster.local', 'A', 'headless'],
    ['1.0.96.10.in-addr.arpa', 'PTR', ['web.default.svc.cluster.local']],
    ['9.9.9.10.in-addr.arpa', 'PTR', 'forward'],
    ['1.0.96.in-addr.arpa', 'PTR', 'forward'],
    [
      '2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa',
      'PTR',
      ['db.shop.svc.cluster.local'],
    ],
  ])('%s %s', (name, type, expected) => {
    expect(short(name, type)).toEqual(expected)
  })

  it('of search-list junk are answered with an SOA, so that clients remember', () => {
    const decision = ask('example.com.cluster.local')
    expect(decision).toMatchObject({
      kind: 'reply',
      reply: { authorities: [{ type: 'SOA', name: 'cluster.local' }] },
    })
  })

  it('of a service name it for prefetching', () => {
    expect(ask('web')).toMatchObject({ service: 'default/web' })
  })

  it.each([
    ['web', 'forward'],
    ['web.default', 'forward'],
    ['web.default.svc', 'SERVFAIL'],
    ['web.default.svc.cluster.local', 'SERVFAIL'],
    ['example.com', 'forward'],
    ['example.com.cluster.local', 'NXDOMAIN'],
  ])('before the first index: %s is %s', (name, expected) => {
    expect(short(name, 'A', false)).toEqual(expected)
  })
})

describe('SRV', () => {
  it('answers a named port, with the addresses beside it', () => {
    const decision = ask('_http._tcp.db.shop.svc.cluster.local', 'SRV')
    expect(decision).toMatchObject({
      reply: {
        answers: [{ type: 'SRV', data: { port: 80, target: 'db.shop.svc.cluster.local' } }],
        additionals: [{ data: '10.96.0.2' }, { data: 'fd00:10:96::2' }],
      },
    })
  })

  it.each([
    ['_dns._udp.web.default.svc.cluster.local', [{ port: 53 }]],
    ['web.default.svc.cluster.local', [{ port: 80 }, { port: 53 }]],
  ])('%s', (name, data) => {
    expect(short(name, 'SRV')).toMatchObject(data)
  })

  it.each([
    '_nope._tcp.web.default.svc.cluster.local',
    '_http._udp.web.default.svc.cluster.local',
    '_http.tcp.web.default.svc.cluster.local',
  ])('of %s is NXDOMAIN', (name) => expect(short(name, 'SRV')).toBe('NXDOMAIN'))

  it('names exist for other types too, without records', () => {
    expect(short('_http._tcp.web.default.svc.cluster.local', 'A')).toBe('NOERROR')
  })
})

describe('headless services', () => {
  const answer = (name: string, type: RecordType) => {
    const decision = ask(name, type)
    if (decision.kind !== 'headless') throw new Error(`not headless: ${decision.kind}`)
    const { rcode, answers } = answerHeadless({ name, type }, decision, setEndpoints, settings)
    return answers.length === 0 ? rcode : answers.map((a) => ('data' in a ? a.data : undefined))
  }

  it.each<[string, RecordType, unknown]>([
    ['set.shop', 'A', ['10.244.1.5', '10.244.1.6']],
    ['set.shop', 'AAAA', ['fd00::5']],
    ['set-0.set.shop.svc.cluster.local', 'A', ['10.244.1.5']],
    ['10-244-1-6.set.shop.svc.cluster.local', 'A', ['10.244.1.6']],
    ['set-9.set.shop.svc.cluster.local', 'A', 'NXDOMAIN'],
    ['_http._tcp.set.shop.svc.cluster.local', 'A', 'NOERROR'],
    ['_nope._tcp.set.shop.svc.cluster.local', 'SRV', 'NXDOMAIN'],
  ])('%s %s', (name, type, expected) => {
    expect(answer(name, type)).toEqual(expected)
  })

  it('have SRV records with their endpoints’ own ports and names', () => {
    expect(answer('_http._tcp.set.shop.svc.cluster.local', 'SRV')).toMatchObject([
      { port: 8080, target: 'set-0.set.shop.svc.cluster.local' },
      { port: 8080, target: '10-244-1-6.set.shop.svc.cluster.local' },
    ])
  })
})
