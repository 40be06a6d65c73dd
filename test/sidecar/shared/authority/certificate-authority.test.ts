import { generateKeyPairSync, X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { copyFile, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect, createServer, type TLSSocket } from 'node:tls'
import { afterAll, describe, expect, it } from 'vitest'
import { CertificateAuthority } from '../../../../sidecar/shared/authority/certificate-authority.ts'
import { identityOf, podServerName, serverNameOf } from '../../../../sidecar/shared/identity.ts'
import { createKeyPair, handshakeFailureOf, tlsFloor } from '../../../../sidecar/shared/tls.ts'
import { identityFor, pod, trustDomain } from '../../../server/harness.ts'

const root = await mkdtemp(join(tmpdir(), 'edgemesh-ca-'))
let folders = 0
const folder = () => join(root, String(++folders))
const hourMs = 3_600_000
const [alice, bob] = [identityFor(pod('alice')), identityFor(pod('bob'))]
const home = folder()
const authority = await CertificateAuthority.open(home, trustDomain)

afterAll(() => rm(root, { recursive: true }))

async function credentials(of = alice, by = authority, lifetimeMs = hourMs) {
  const keys = await createKeyPair()
  const { chain } = await by.issue(of, keys.publicKey, lifetimeMs)
  return { key: keys.privateKey.reveal(), cert: chain }
}

type Credentials = Awaited<ReturnType<typeof credentials>>

/** A real mTLS handshake; resolves with who each took the other for. */
async function handshake(
  serving: Credentials,
  dialing: Credentials,
  { servername = podServerName(bob.podUid, trustDomain), ca = authority.trustBundle } = {},
) {
  const server = createServer({ ...tlsFloor, ...serving, ca: authority.trustBundle, requestCert: true })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  const port = typeof address === 'object' && address !== null ? address.port : 0
  const { promise: accepted, resolve, reject } = Promise.withResolvers<TLSSocket>()
  server.once('secureConnection', resolve)
  // Node itself says no more than that it hung up; why is kept with the socket.
  server.once('tlsClientError', (error, socket) =>
    reject(Object.assign(error, { code: String(socket.authorizationError) })),
  )
  const client = connect({ ...tlsFloor, ...dialing, ca, servername, port, host: '127.0.0.1' })
  try {
    const [near] = await Promise.all([accepted, once(client, 'secureConnect')])
    return { server: peerOf(client), client: peerOf(near) }
  } finally {
    accepted.then((socket) => socket.destroy()).catch(() => client.destroy())
    client.destroy()
    server.close()
  }
}

const peerOf = (socket: TLSSocket) => {
  const certificate = socket.getPeerX509Certificate()
  return certificate === undefined ? undefined : identityOf(certificate, trustDomain)
}

describe('a leaf', () => {
  it('has the names of the identity only, and is no authority', async () => {
    const leaf = new X509Certificate((await credentials()).cert)
    expect(leaf.subjectAltName?.split(', ').sort()).toEqual([
      'DNS:uid-alice.pod.cluster.local',
      'URI:spiffe://cluster.local/ns/shop/sa/alice',
    ])
    expect(identityOf(leaf, trustDomain)).toEqual(alice)
    expect(leaf.ca).toBe(false)
    expect(leaf.checkIssued(new X509Certificate(authority.trustBundle))).toBe(true)
  })

  it('does not outlive its root, and says how long it lives by the clock of the server', async () => {
    const root = new X509Certificate(authority.trustBundle)
    const keys = await createKeyPair()
    const long = await authority.issue(alice, keys.publicKey, 20 * 365 * 24 * hourMs)
    expect(new X509Certificate(long.chain).validTo).toBe(root.validTo)
    const short = await authority.issue(alice, keys.publicKey, hourMs)
    expect(short.lifetimeMs).toBeGreaterThan(hourMs - 2_000)
    expect(short.lifetimeMs).toBeLessThanOrEqual(hourMs)
  })

  it('is valid for who is an hour behind', async () => {
    const leaf = new X509Certificate((await credentials()).cert)
    expect(Date.parse(leaf.validFrom)).toBeLessThan(Date.now() - hourMs)
  })

  it('has a serial number of its own', async () => {
    const leaves = await Promise.all(Array.from({ length: 50 }, () => credentials()))
    expect(new Set(leaves.map((l) => new X509Certificate(l.cert).serialNumber)).size).toBe(50)
  })

  it('ends when it was asked to, and says so', async () => {
    const asked = Date.now() + hourMs
    const { chain, notAfter } = await authority.issue(alice, (await createKeyPair()).publicKey, hourMs)
    const { validTo, validFrom } = new X509Certificate(chain)
    expect(Date.parse(validTo)).toBe(notAfter)
    expect(Math.abs(notAfter - asked)).toBeLessThan(60_000)
    expect(Date.parse(validFrom)).toBeLessThan(asked - hourMs)
  })

  it.each([
    ['a P-384 key', generateKeyPairSync('ec', { namedCurve: 'P-384' }).publicKey],
    ['an RSA key', generateKeyPairSync('rsa', { modulusLength: 2_048 }).publicKey],
    ['an Ed25519 key', generateKeyPairSync('ed25519').publicKey],
  ])('is not made for %s', async (_what, key) => {
    const spki = key.export({ type: 'spki', format: 'der' }).toString('base64')
    await expect(authority.issue(alice, spki, hourMs)).rejects.toThrow()
  })

  it.each(['', 'AAAA', '!'])('is not made for %j as a key', async (key) => {
    await expect(authority.issue(alice, key, hourMs)).rejects.toThrow()
  })
})

describe('two pods of the mesh', () => {
  it('know each other after a handshake', async () => {
    expect(await handshake(await credentials(bob), await credentials(alice))).toEqual({
      server: bob,
      client: alice,
    })
  })

  it('do not take one pod for another', async () => {
    const servername = podServerName('uid-carol', trustDomain)
    const failure = await handshake(await credentials(bob), await credentials(), { servername }).catch(
      (e) => e,
    )
    expect(handshakeFailureOf(failure)).toBe('wrong-identity')
  })

  it.each([
    ['dialled', true],
    ['dialling', false],
  ])('refuse a certificate that has expired of the %s', async (_side, dialled) => {
    const [expired, good] = [await credentials(bob, authority, -60_000), await credentials(bob)]
    const failure = await handshake(dialled ? expired : good, dialled ? good : expired).catch((e) => e)
    expect(handshakeFailureOf(failure)).toBe('expired')
  })

  it.each([
    ['dialled', true],
    ['dialling', false],
  ])('refuse a certificate of another authority of the %s', async (_side, dialled) => {
    const other = await CertificateAuthority.open(folder(), trustDomain)
    const [foreign, good] = [await credentials(bob, other), await credentials(bob)]
    const failure = await handshake(dialled ? foreign : good, dialled ? good : foreign).catch((e) => e)
    expect(handshakeFailureOf(failure)).toBe('untrusted')
  })
})

describe("the server's own certificate", () => {
  it('is good for its name, which no pod has', async () => {
    const { key, certificate } = await authority.issueServer(hourMs)
    const servername = serverNameOf(trustDomain)
    const leaf = new X509Certificate(certificate.chain)
    expect(leaf.subjectAltName).toBe(`DNS:${servername}`)
    expect(() => identityOf(leaf, trustDomain)).toThrow(
      expect.objectContaining({ code: 'identity-mismatch' }),
    )
    expect(leaf.checkHost(podServerName('edgemesh-server', trustDomain))).toBeUndefined()
    const serving = { key: key.reveal(), cert: certificate.chain }
    const failure = handshake(serving, await credentials(), { servername })
    await expect(failure).rejects.toMatchObject({ code: 'identity-mismatch' }) // TLS itself was content
  })
})

describe('the folder of the authority', () => {
  it('holds the key for its owner only, and nothing half-written', async () => {
    expect((await stat(join(home, 'ca.key'))).mode & 0o777).toBe(0o600)
    expect((await readdir(home)).sort()).toEqual(['ca.crt', 'ca.key'])
    expect(await readFile(join(home, 'ca.crt'), 'utf8')).toBe(authority.trustBundle)
    expect(new X509Certificate(authority.trustBundle).ca).toBe(true)
  })

  it('gives the same authority again', async () => {
    const again = await CertificateAuthority.open(home, trustDomain)
    expect(again.trustBundle).toBe(authority.trustBundle)
    expect(await handshake(await credentials(bob, again), await credentials(alice))).toMatchObject({
      client: alice,
    })
  })

  it.each<[string, (at: string, other: string) => Promise<void>]>([
    ['has no key', (at) => rm(join(at, 'ca.key'))],
    ['has no certificate', (at) => rm(join(at, 'ca.crt'))],
    ["has another authority's key", (at, other) => copyFile(join(other, 'ca.key'), join(at, 'ca.key'))],
    [
      "has another authority's certificate",
      (at, other) => copyFile(join(other, 'ca.crt'), join(at, 'ca.crt')),
    ],
    ['has an empty key', (at) => writeFile(join(at, 'ca.key'), '')],
    ['has a broken certificate', (at) => writeFile(join(at, 'ca.crt'), 'not a certificate')],
  ])('is refused when it %s, and left as it is', async (_what, damage) => {
    const [at, other] = [folder(), folder()]
    for (const one of [at, other]) await CertificateAuthority.open(one, trustDomain)
    await damage(at, other)
    const before = await readdir(at)
    const refusal = await CertificateAuthority.open(at, trustDomain).catch((e) => e)
    expect(refusal).toMatchObject({ code: 'bad-config' })
    expect(refusal.message).toMatch(/^Cannot use .+ca\.crt and .+ca\.key: .+ Restore both, or remove both/)
    expect(refusal.message).not.toContain('PRIVATE KEY')
    expect(await readdir(at)).toEqual(before)
  })

  it('is refused when it cannot be one', async () => {
    await writeFile(join(root, 'file'), '')
    await expect(CertificateAuthority.open(join(root, 'file'), trustDomain)).rejects.toMatchObject({
      code: 'bad-config',
    })
  })
})
