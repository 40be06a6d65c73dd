import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Identity } from '../../../sidecar/control/identity.ts'
import { CertificateAuthority } from '../../../sidecar/shared/authority/certificate-authority.ts'
import { createLogger } from '../../../sidecar/shared/log.ts'

const log = createLogger('test', 'silent')
const trustDomain = 'cluster.local'
let folder: string
let authority: CertificateAuthority

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'emt-'))
  authority = await CertificateAuthority.open(join(folder, 'ca'), trustDomain)
})
afterAll(() => rmSync(folder, { recursive: true }))

const open = (name?: string, podUid = 'me') =>
  Identity.open({ podUid, trustDomain, folder: name === undefined ? undefined : join(folder, name) }, log)
const issue = (publicKey: string, podUid = 'me', domain = trustDomain) =>
  authority.issue(
    { trustDomain: domain, namespace: 'default', serviceAccount: 'default', podUid },
    publicKey,
    60_000,
  )

describe('the identity of a pod', () => {
  it('is of no use before its first certificate', async () => {
    const identity = await open()
    expect(() => identity.tlsOptions()).toThrow('this pod has no certificate yet')
  })

  it('takes a certificate for its own pod and key, and tells who listens', async () => {
    const identity = await open()
    let told = 0
    identity.onChange(() => told++)
    identity.replace(await issue(identity.keys.publicKey))
    identity.replace(await issue(identity.keys.publicKey))
    expect(told).toBe(2)
    expect(identity.tlsOptions()).toMatchObject({ minVersion: 'TLSv1.3', ca: authority.trustBundle })
  })

  it('refuses one for another pod, key or trust domain, and keeps what it has', async () => {
    const identity = await open()
    const good = await issue(identity.keys.publicKey)
    identity.replace(good)
    const other = await open()
    for (const bad of [
      await issue(identity.keys.publicKey, 'another'),
      await issue(other.keys.publicKey),
      await issue(identity.keys.publicKey, 'me', 'elsewhere.local'),
    ]) {
      expect(() => identity.replace(bad)).toThrow(/Cannot (use|accept) the certificate/)
    }
    expect(identity.certificate).toBe(good)
  })

  it('survives a restart where it has a folder, readable by its owner only', async () => {
    const identity = await open('kept')
    identity.replace(await issue(identity.keys.publicKey))
    const again = await open('kept')
    expect(again.keys.publicKey).toBe(identity.keys.publicKey)
    expect(again.certificate).toEqual(identity.certificate)
    expect(statSync(join(folder, 'kept/identity.json')).mode & 0o777).toBe(0o600)
    expect((await open('kept', 'another-pod')).certificate).toBeUndefined()
  })

  it('starts anew from a file that is broken', async () => {
    const identity = await open('broken')
    identity.replace(await issue(identity.keys.publicKey))
    const file = join(folder, 'broken/identity.json')
    writeFileSync(file, readFileSync(file, 'utf8').slice(0, 100))
    const again = await open('broken')
    expect(again.certificate).toBeUndefined()
    expect(again.keys.publicKey).not.toBe(identity.keys.publicKey)
  })

  it('is never printed', async () => {
    const identity = await open()
    expect(JSON.stringify(identity.keys)).toContain('"privateKey":"[secret]"')
    expect(`${identity.keys.privateKey}`).toBe('[secret]')
  })
})
