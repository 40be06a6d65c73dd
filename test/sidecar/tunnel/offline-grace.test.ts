import { X509Certificate } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { CertificateAuthority, createRoot } from '../../../sidecar/shared/authority/certificate-authority.ts'
import { createKeyPair } from '../../../sidecar/shared/tls.ts'
import { expiredLeafRefusal, type Situation } from '../../../sidecar/tunnel/offline-grace.ts'
import { identityFor, pod, trustDomain } from '../../server/harness.ts'
import { certificateWith } from '../shared/certificates.ts'

const minute = 60_000
const hour = 60 * minute
let folder: string
let ours: CertificateAuthority
let leaf: X509Certificate
let now: number

async function leafBy(authority: CertificateAuthority, lifetimeMs: number): Promise<X509Certificate> {
  const keys = await createKeyPair()
  const { chain } = await authority.issue(identityFor(pod('peer')), keys.publicKey, lifetimeMs)
  return new X509Certificate(chain)
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'emt-'))
  ours = await CertificateAuthority.open(join(folder, 'ours'), trustDomain)
  leaf = await leafBy(ours, -10 * minute)
  now = Date.now()
})
afterAll(() => rmSync(folder, { recursive: true }))

/** Cut off for an hour, a grace of an hour, and a leaf that expired ten minutes ago. */
const situation = (more: Partial<Situation> = {}): Situation => ({
  trustBundle: ours.trustBundle,
  role: 'client',
  graceMs: hour,
  downSince: now - hour,
  now,
  ...more,
})

describe('an expired leaf', () => {
  it('is good enough for a peer that has lost the server before it expired, in both roles', () => {
    expect(expiredLeafRefusal(leaf, situation())).toBeUndefined()
    expect(expiredLeafRefusal(leaf, situation({ role: 'server' }))).toBeUndefined()
  })

  it.each<[string, () => Partial<Situation>, string]>([
    ['without a grace', () => ({ graceMs: 0 }), 'no offline grace'],
    ['with a grace that is no number', () => ({ graceMs: Number.NaN }), 'no offline grace'],
    ['while the server is there', () => ({ downSince: undefined }), 'the server is there'],
    [
      'that had expired before the server went away',
      () => ({ downSince: now - 5 * minute }),
      'before the server',
    ],
    ['by a clock gone wrong', () => ({ downSince: Number.NaN }), 'before the server'],
    ['longer ago than the grace', () => ({ graceMs: 9 * minute }), 'longer ago'],
    ['that has not expired', () => ({ now: now - 30 * minute }), 'has not expired'],
    ['that is not valid yet', () => ({ now: now - 2 * hour }), 'not valid yet'],
    ['where no root is known', () => ({ trustBundle: '' }), 'no trusted root'],
    ['where the roots are garbage', () => ({ trustBundle: 'garbage' }), 'no trusted root'],
  ])('is refused %s', (_title, more, why) => {
    expect(expiredLeafRefusal(leaf, situation(more()))).toContain(why)
  })

  it('of another CA of the same name is refused', async () => {
    const foreign = await CertificateAuthority.open(join(folder, 'foreign'), trustDomain)
    const forged = await leafBy(foreign, -10 * minute)
    expect(forged.issuer).toBe(leaf.issuer)
    expect(expiredLeafRefusal(forged, situation())).toContain('no trusted root')
    const both = ours.trustBundle + foreign.trustBundle
    expect(expiredLeafRefusal(forged, situation({ trustBundle: both }))).toBeUndefined()
  })

  it('of a root that has itself expired is refused', async () => {
    const root = await createRoot(trustDomain, -5 * minute)
    const authority = await CertificateAuthority.of(root, [], trustDomain)
    const old = await leafBy(authority, -10 * minute)
    expect(expiredLeafRefusal(old, situation({ trustBundle: authority.trustBundle }))).toContain(
      'no trusted root',
    )
  })

  it('that signed itself, or is an authority, is refused', async () => {
    const self = await certificateWith([{ type: 'dns', value: 'peer.pod.cluster.local' }])
    const after = Date.parse(self.validTo) + minute
    const late = { now: after, downSince: after - hour }
    expect(expiredLeafRefusal(self, situation(late))).toContain('not for a TLS client')
    const root = new X509Certificate((await createRoot(trustDomain, -10 * minute)).certificate)
    expect(expiredLeafRefusal(root, situation())).toContain('an authority')
  })
})
