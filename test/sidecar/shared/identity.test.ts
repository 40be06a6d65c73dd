import type { JsonGeneralNames } from '@peculiar/x509'
import { describe, expect, it } from 'vitest'
import { identityOf, podServerName, serverNameOf, spiffeIdOf } from '../../../sidecar/shared/identity.ts'
import { certificateWith } from './certificates.ts'

const trustDomain = 'cluster.local'
const uid = '3f1c9d6e-0000-4000-8000-000000000001'
const identity = { trustDomain, namespace: 'shop', serviceAccount: 'cart', podUid: uid }
const goodUri = 'spiffe://cluster.local/ns/shop/sa/cart'
const goodDns = `${uid}.pod.cluster.local`
const uri = (value = goodUri) => ({ type: 'url' as const, value })
const dns = (value = goodDns) => ({ type: 'dns' as const, value })

const refused: [string, JsonGeneralNames | undefined][] = [
  ['no names at all', undefined],
  ['only a DNS name', [dns()]],
  ['only a URI', [uri()]],
  ['two DNS names', [uri(), dns(), dns('other.pod.cluster.local')]],
  ['the same DNS name twice', [uri(), dns(), dns()]],
  ['two DNS names and no URI', [dns(), dns()]],
  ['an extra URI', [uri(), uri('spiffe://cluster.local/ns/kube-system/sa/admin'), dns()]],
  ['an extra IP address', [uri(), dns(), { type: 'ip', value: '10.0.0.1' }]],
  ['an extra mail address', [uri(), dns(), { type: 'email', value: 'a@b.c' }]],
  ['a foreign trust domain', [uri('spiffe://evil.example/ns/shop/sa/cart'), dns()]],
  ['a trust domain that ends like ours', [uri('spiffe://x.cluster.local/ns/shop/sa/cart'), dns()]],
  ['a trust domain that begins like ours', [uri('spiffe://cluster.local.x/ns/shop/sa/cart'), dns()]],
  ['a foreign pod domain', [uri(), dns(`${uid}.pod.evil.example`)]],
  ['a pod domain that only ends like ours', [uri(), dns(`${uid}.pod.xcluster.local`)]],
  ['a uid of two labels', [uri(), dns(`a.${uid}.pod.cluster.local`)]],
  ['an empty uid', [uri(), dns('.pod.cluster.local')]],
  ['the bare pod domain', [uri(), dns('pod.cluster.local')]],
  ["the server's name", [uri(), dns(serverNameOf(trustDomain))]],
  ['another scheme', [uri('https://cluster.local/ns/shop/sa/cart'), dns()]],
  ['a path with more steps', [uri(`${goodUri}/x`), dns()]],
  ['a path with fewer steps', [uri('spiffe://cluster.local/ns/shop'), dns()]],
  ['an empty namespace', [uri('spiffe://cluster.local/ns//sa/cart'), dns()]],
  ['an empty service account', [uri('spiffe://cluster.local/ns/shop/sa/'), dns()]],
  ['a list of names in one DNS name', [dns(`${uid}.pod.cluster.local, URI:${goodUri}`)]],
  ['a list of names in one URI', [uri(`${goodUri}, DNS:${goodDns}`)]],
  ['a second name hidden in the URI', [uri(`${goodUri}, DNS:${goodDns}`), dns('other.example')]],
  [
    'a second name hidden in the DNS name',
    [uri('spiffe://evil.example/x'), dns(`${goodDns}, URI:${goodUri}`)],
  ],
  ['a DNS name with a NUL', [uri(), dns(`${uid}.pod.cluster.local\0.evil.example`)]],
  ['a DNS name with a line break', [uri(), dns(`${uid}\n.pod.cluster.local`)]],
  ['a DNS name with a quote', [uri(), dns(`"${goodDns}"`)]],
  ['a URI with a NUL', [uri(`${goodUri}\0`), dns()]],
  ['a URI with a line break', [uri('spiffe://cluster.local/ns/shop/sa/cart\nx'), dns()]],
]

describe('the identity in a certificate', () => {
  it('is read from its one URI and one DNS name, in either order', async () => {
    expect(identityOf(await certificateWith([uri(), dns()]), trustDomain)).toEqual(identity)
    expect(identityOf(await certificateWith([dns(), uri()]), trustDomain)).toEqual(identity)
  })

  it('is what the names were made of', async () => {
    const names = [uri(spiffeIdOf(identity)), dns(podServerName(uid, trustDomain))]
    expect(identityOf(await certificateWith(names), trustDomain)).toEqual(identity)
  })

  it.each(refused)('is refused with %s', async (_name, names) => {
    const certificate = await certificateWith(names)
    expect(() => identityOf(certificate, trustDomain)).toThrow(
      expect.objectContaining({ code: 'identity-mismatch' }),
    )
  })

  it('is of one mesh only', async () => {
    const certificate = await certificateWith([uri(), dns()])
    expect(() => identityOf(certificate, 'other.local')).toThrow('is not of trust domain other.local')
  })
})
