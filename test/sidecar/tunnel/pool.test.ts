import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createSecureServer } from 'node:http2'
import { type AddressInfo, connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { Identity } from '../../../sidecar/control/identity.ts'
import { ServerContact } from '../../../sidecar/control/server-contact.ts'
import { CertificateAuthority } from '../../../sidecar/shared/authority/certificate-authority.ts'
import { codeOf } from '../../../sidecar/shared/errors.ts'
import { createLogger } from '../../../sidecar/shared/log.ts'
import { createKeyPair, tlsFloor } from '../../../sidecar/shared/tls.ts'
import { SidecarMetrics } from '../../../sidecar/sidecar-metrics.ts'
import { OfflineGrace } from '../../../sidecar/tunnel/offline-grace.ts'
import { SessionPool } from '../../../sidecar/tunnel/pool.ts'
import { identityFor, pod, trustDomain } from '../../server/harness.ts'

const minute = 60_000
const log = createLogger('test', 'silent')
let folder: string
let ours: CertificateAuthority
let foreign: CertificateAuthority

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'emt-'))
  ours = await CertificateAuthority.open(join(folder, 'ours'), trustDomain)
  foreign = await CertificateAuthority.open(join(folder, 'foreign'), trustDomain)
})
afterAll(() => rmSync(folder, { recursive: true }))

/** A tunnel endpoint that shows a leaf of our choice. */
async function serve(authority: CertificateAuthority, name: string, lifetimeMs: number) {
  const keys = await createKeyPair()
  const { chain } = await authority.issue(identityFor(pod(name)), keys.publicKey, lifetimeMs)
  const key = keys.privateKey.reveal()
  const server = createSecureServer({
    ...tlsFloor,
    key,
    cert: chain,
    ca: ours.trustBundle,
    requestCert: true,
  })
  server.on('sessionError', () => undefined)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return { dial: () => Promise.resolve(connect(port, '127.0.0.1')), close: () => server.close() }
}

/** The dialling side of pod `alice`, cut off from the server for so long. */
async function dialler({ graceMs = 60 * minute, cutMs = 30 * minute, up = false, ownLifetimeMs = minute }) {
  const state = mkdtempSync(join(folder, 'state-'))
  mkdirSync(state, { recursive: true })
  writeFileSync(join(state, 'server-contact.json'), JSON.stringify({ up: false, since: Date.now() - cutMs }))
  const contact = new ServerContact(state, log)
  if (up) contact.up()
  const identity = await Identity.open({ podUid: pod('alice').uid, trustDomain, folder: undefined }, log)
  identity.replace(await ours.issue(identityFor(pod('alice')), identity.keys.publicKey, ownLifetimeMs))
  const grace = new OfflineGrace(graceMs, contact, identity)
  return { pool: new SessionPool(identity, grace, new SidecarMetrics(), log), grace, contact }
}

const bob = pod('bob').uid

describe('the dialling side', () => {
  it('takes a peer whose certificate has expired while both are cut off, until the server is back', async () => {
    const { pool, grace, contact } = await dialler({})
    const server = await serve(ours, 'bob', -10 * minute)
    await pool.prepare(bob, server.dial)
    expect([pool.has(bob), grace.sessions]).toEqual([true, 1])
    contact.up()
    expect(pool.has(bob)).toBe(false)
    await vi.waitFor(() => expect(grace.sessions).toBe(0))
    await expect(pool.prepare(bob, server.dial)).rejects.toThrow('has expired')
    pool.close()
    server.close()
  })

  it('holds no session of a peer that is valid', async () => {
    const { pool, grace } = await dialler({})
    const server = await serve(ours, 'bob', 10 * minute)
    await pool.prepare(bob, server.dial)
    expect([pool.has(bob), grace.sessions]).toEqual([true, 0])
    pool.close()
    server.close()
  })

  it.each<[string, () => Promise<Awaited<ReturnType<typeof serve>>>, Parameters<typeof dialler>[0], string]>([
    ['without a grace', () => serve(ours, 'bob', -10 * minute), { graceMs: 0 }, 'CERT_HAS_EXPIRED'],
    ['while the server is there', () => serve(ours, 'bob', -10 * minute), { up: true }, 'CERT_HAS_EXPIRED'],
    [
      'that expired before it was cut off',
      () => serve(ours, 'bob', -10 * minute),
      { cutMs: 5 * minute },
      'CERT_HAS_EXPIRED',
    ],
    [
      'that expired longer ago than the grace',
      () => serve(ours, 'bob', -10 * minute),
      { graceMs: 9 * minute },
      'CERT_HAS_EXPIRED',
    ],
    ['of another CA, expired', () => serve(foreign, 'bob', -10 * minute), {}, 'CERT_HAS_EXPIRED'],
    ['of another CA, valid', () => serve(foreign, 'bob', 10 * minute), {}, 'UNABLE_TO_VERIFY_LEAF_SIGNATURE'],
    ['of another pod, expired', () => serve(ours, 'carol', -10 * minute), {}, 'identity-mismatch'],
    ['of another pod, valid', () => serve(ours, 'carol', 10 * minute), {}, 'ERR_TLS_CERT_ALTNAME_INVALID'],
    [
      'of a peer that is valid, where its own has expired and there is no grace',
      () => serve(ours, 'bob', 10 * minute),
      { graceMs: 0, ownLifetimeMs: -10 * minute },
      'unauthenticated',
    ],
  ])('refuses a certificate %s', async (_title, serving, own, code) => {
    const { pool, grace } = await dialler(own)
    const server = await serving()
    expect(await pool.prepare(bob, server.dial).then(() => 'taken', codeOf)).toBe(code)
    expect([pool.has(bob), grace.sessions]).toEqual([false, 0])
    pool.close()
    server.close()
  })
})
