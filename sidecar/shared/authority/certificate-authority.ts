import 'reflect-metadata'
import { createPrivateKey, createPublicKey, randomBytes, webcrypto, X509Certificate } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import * as x509 from '@peculiar/x509'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { type PodIdentity, podServerName, serverNameOf, spiffeIdOf } from '#shared/identity.ts'
import { Secret } from '#shared/secret.ts'
import type { IssuedCertificate } from '#shared/wire.ts'

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const
const dayMs = 86_400_000
const caLifetimeMs = 10 * 365 * dayMs

/** A root as it is kept: PEM both. */
export interface Root {
  certificate: string
  key: Secret
}
/** Clocks at the edge may be behind ours by so much: an hour, and some. */
const backdateMs = 65 * 60_000
const serverAuth = '1.3.6.1.5.5.7.3.1'
const clientAuth = '1.3.6.1.5.5.7.3.2'
const leafExtensions = [
  new x509.BasicConstraintsExtension(false, undefined, true),
  new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
  new x509.ExtendedKeyUsageExtension([clientAuth, serverAuth]),
]

/** Signs the certificates of pods and of the server itself. Names come from verified identities only. */
export class CertificateAuthority {
  readonly #trustDomain: string
  #root: LoadedRoot
  /** Other roots that everyone still or already trusts, PEM. */
  #others: readonly string[]

  private constructor(root: LoadedRoot, others: readonly string[], trustDomain: string) {
    this.#root = root
    this.#others = others
    this.#trustDomain = trustDomain
  }

  /** Signs with `root`; `others` (PEM) are trusted too, while roots are being exchanged. */
  static async of(root: Root, others: readonly string[], trustDomain: string): Promise<CertificateAuthority> {
    return new CertificateAuthority(await loadRoot(root), others, trustDomain)
  }

  /** Takes other roots into use; certificates that were issued stay valid as long as their root is among them. */
  async use(root: Root, others: readonly string[]): Promise<void> {
    this.#root = await loadRoot(root)
    this.#others = others
  }

  /** Loads `ca.crt` and `ca.key` of the folder, or makes them there on the first start. */
  static async open(folder: string, trustDomain: string): Promise<CertificateAuthority> {
    const [certificateFile, keyFile] = [join(folder, 'ca.crt'), join(folder, 'ca.key')]
    try {
      mkdirSync(folder, { recursive: true })
      if (!existsSync(certificateFile) && !existsSync(keyFile)) {
        const made = await createRoot(trustDomain, caLifetimeMs)
        writeWhole(keyFile, made.key.reveal(), 0o600)
        writeWhole(certificateFile, made.certificate, 0o644)
      }
      const certificate = readFileSync(certificateFile, 'utf8')
      const key = new Secret(readFileSync(keyFile, 'utf8'))
      return await CertificateAuthority.of({ certificate, key }, [], trustDomain)
    } catch (error) {
      throw new EdgeMeshError(
        'bad-config',
        `Cannot use ${certificateFile} and ${keyFile}: ${sentenceOf(error)}. Restore both, or remove both for a new CA (every sidecar then needs the new ca.crt).`,
        error,
      )
    }
  }

  /** The roots that everyone verifies against, PEM. */
  get trustBundle(): string {
    return [this.#root.certificate.toString('pem'), ...this.#others].map((pem) => `${pem.trim()}\n`).join('')
  }

  /** A leaf for a pod. `publicKey` is SPKI DER, base64, as in the certificate request. */
  async issue(identity: PodIdentity, publicKey: string, lifetimeMs: number): Promise<IssuedCertificate> {
    const names: x509.JsonGeneralNames = [
      { type: 'url', value: spiffeIdOf(identity) },
      { type: 'dns', value: podServerName(identity.podUid, identity.trustDomain) },
    ]
    return this.#sign(names, publicKeyOf(Buffer.from(publicKey, 'base64')), lifetimeMs)
  }

  /** A key and a leaf of our own: the server's, unless other DNS names are given. */
  async issueServer(
    lifetimeMs: number,
    dnsNames: readonly string[] = [serverNameOf(this.#trustDomain)],
  ): Promise<{ key: Secret; certificate: IssuedCertificate }> {
    const pair = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
    const names: x509.JsonGeneralNames = dnsNames.map((value) => ({ type: 'dns', value }))
    const key = new Secret(await privatePem(pair.privateKey))
    return { key, certificate: await this.#sign(names, pair.publicKey, lifetimeMs) }
  }

  async #sign(
    names: x509.JsonGeneralNames,
    publicKey: x509.PublicKeyType,
    lifetimeMs: number,
  ): Promise<IssuedCertificate> {
    const { certificate, key, keyIdentifier } = this.#root
    const now = Date.now()
    // A leaf that outlives its root would be refused; and certificates know whole seconds.
    const until = Math.min(now + lifetimeMs, certificate.notAfter.getTime())
    const notAfter = Math.floor(until / 1_000) * 1_000
    const leaf = await x509.X509CertificateGenerator.create({
      serialNumber: serial(),
      issuer: certificate.subjectName,
      subject: '', // the names stand in the SAN, which is critical therefore (RFC 5280, 4.2.1.6)
      notBefore: new Date(now - backdateMs),
      notAfter: new Date(notAfter),
      publicKey,
      signingKey: key,
      signingAlgorithm: algorithm,
      extensions: [...leafExtensions, new x509.SubjectAlternativeNameExtension(names, true), keyIdentifier],
    })
    const chain = `${leaf.toString('pem')}\n`
    return { chain, trustBundle: this.trustBundle, notAfter, lifetimeMs: Math.max(0, notAfter - now) }
  }
}

/** What each leaf needs of its root, made once. */
interface LoadedRoot {
  certificate: x509.X509Certificate
  key: webcrypto.CryptoKey
  keyIdentifier: x509.Extension
}

async function loadRoot({ certificate, key }: Root): Promise<LoadedRoot> {
  const belongs = new X509Certificate(certificate).checkPrivateKey(createPrivateKey(key.reveal()))
  if (!belongs) throw new Error('they do not belong together')
  const parsed = new x509.X509Certificate(certificate)
  return {
    certificate: parsed,
    keyIdentifier: await x509.AuthorityKeyIdentifierExtension.create(parsed.publicKey),
    key: await webcrypto.subtle.importKey('pkcs8', derOf(key.reveal()), algorithm, false, ['sign']),
  }
}

/** A new root for the trust domain. */
export async function createRoot(trustDomain: string, lifetimeMs: number): Promise<Root> {
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serial(),
    name: `CN=EdgeMesh CA, O=${trustDomain}`,
    notBefore: new Date(Date.now() - backdateMs),
    notAfter: new Date(Date.now() + lifetimeMs),
    keys,
    signingAlgorithm: algorithm,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  })
  return {
    certificate: `${certificate.toString('pem')}\n`,
    key: new Secret(await privatePem(keys.privateKey)),
  }
}

function writeWhole(path: string, text: string, mode: number): void {
  writeFileSync(`${path}.new`, text, { mode })
  renameSync(`${path}.new`, path)
}

/** The key as DER again, whatever was written around it; throws for one that is not of our curve. */
function publicKeyOf(spki: Buffer): Buffer<ArrayBuffer> {
  const key = createPublicKey({ key: spki, format: 'der', type: 'spki' })
  if (key.asymmetricKeyDetails?.namedCurve !== 'prime256v1')
    throw new Error('it is no key of the curve P-256')
  return Buffer.from(key.export({ format: 'der', type: 'spki' }))
}

async function privatePem(key: webcrypto.CryptoKey): Promise<string> {
  const der = Buffer.from(await webcrypto.subtle.exportKey('pkcs8', key))
  return createPrivateKey({ key: der, format: 'der', type: 'pkcs8' })
    .export({ format: 'pem', type: 'pkcs8' })
    .toString()
}

function derOf(pem: string): Buffer {
  return createPrivateKey(pem).export({ format: 'der', type: 'pkcs8' })
}

/** 127 random bits; a serial number must be positive (RFC 5280). */
function serial(): string {
  const bytes = randomBytes(16)
  bytes.writeUInt8(bytes.readUInt8(0) & 0x7f, 0)
  return bytes.toString('hex')
}
