import 'reflect-metadata'
import {
  createPrivateKey,
  createPublicKey,
  type KeyObject,
  randomBytes,
  sign,
  webcrypto,
  X509Certificate,
} from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import * as x509 from '@peculiar/x509'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { type PodIdentity, podServerName, serverNameOf, spiffeIdOf } from '#shared/identity.ts'
import { Secret } from '#shared/secret.ts'
import { createKeyPair } from '#shared/tls.ts'
import type { IssuedCertificate } from '#shared/wire.ts'
import { certificateOf, type LeafName, tbsOf } from './leaf.ts'

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
/** What all leaves say alike, DER. */
const leafExtensions = [
  new x509.BasicConstraintsExtension(false, undefined, true),
  new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
  new x509.ExtendedKeyUsageExtension([clientAuth, serverAuth]),
].map(({ rawData }) => Buffer.from(rawData))
/** In front of the two coordinates of a point on P-256, in a SubjectPublicKeyInfo. */
const p256Header = Buffer.from('3059301306072a8648ce3d020106082a8648ce3d03010703420004', 'hex')

/** A root that signs, and what its leaves say of it, DER. */
interface Signer {
  /** PEM. */
  certificate: string
  key: KeyObject
  notAfterMs: number
  subject: Buffer
  /** The extension that names its key. */
  keyIdentifier: Buffer
}

/** Signs the certificates of pods and of the server itself. Names come from verified identities only. */
export class CertificateAuthority {
  readonly #trustDomain: string
  #signer: Signer
  /** Other roots that everyone still or already trusts, PEM. */
  #others: readonly string[]

  private constructor(signer: Signer, others: readonly string[], trustDomain: string) {
    this.#signer = signer
    this.#others = others
    this.#trustDomain = trustDomain
  }

  /** Signs with `root`; `others` (PEM) are trusted too, while roots are being exchanged. */
  static async of(root: Root, others: readonly string[], trustDomain: string): Promise<CertificateAuthority> {
    return new CertificateAuthority(await loadRoot(root), others, trustDomain)
  }

  /** Takes other roots into use; certificates that were issued stay valid as long as their root is among them. */
  async use(root: Root, others: readonly string[]): Promise<void> {
    this.#signer = await loadRoot(root)
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
    return [this.#signer.certificate, ...this.#others].map((pem) => `${pem.trim()}\n`).join('')
  }

  /** A leaf for a pod. `publicKey` is SPKI DER, base64, as in the certificate request. Rejects when it is not P-256. */
  async issue(identity: PodIdentity, publicKey: string, lifetimeMs: number): Promise<IssuedCertificate> {
    const names: LeafName[] = [
      { type: 'url', value: spiffeIdOf(identity) },
      { type: 'dns', value: podServerName(identity.podUid, identity.trustDomain) },
    ]
    return this.#sign(names, publicKey, lifetimeMs)
  }

  /** A key and a leaf of our own: the server's, unless other DNS names are given. */
  async issueServer(
    lifetimeMs: number,
    dnsNames: readonly string[] = [serverNameOf(this.#trustDomain)],
  ): Promise<{ key: Secret; certificate: IssuedCertificate }> {
    const { privateKey: key, publicKey } = await createKeyPair()
    const names = dnsNames.map((value) => ({ type: 'dns', value }) as const)
    return { key, certificate: this.#sign(names, publicKey, lifetimeMs) }
  }

  #sign(names: readonly LeafName[], publicKey: string, lifetimeMs: number): IssuedCertificate {
    const { key, notAfterMs, subject, keyIdentifier } = this.#signer
    const now = Date.now()
    // A leaf that outlives its root would be refused; and certificates know whole seconds.
    const notAfter = Math.floor(Math.min(now + lifetimeMs, notAfterMs) / 1_000) * 1_000
    const tbs = tbsOf({
      serial: serial(),
      issuer: subject,
      notBefore: new Date(now - backdateMs),
      notAfter: new Date(notAfter),
      publicKey: p256KeyOf(publicKey),
      names, // they stand in the SAN, which is critical therefore (RFC 5280, 4.2.1.6)
      extensions: [...leafExtensions, keyIdentifier],
    })
    const chain = certificateOf(tbs, sign('sha256', tbs, key))
    return { chain, trustBundle: this.trustBundle, notAfter, lifetimeMs: Math.max(0, notAfter - now) }
  }
}

async function loadRoot({ certificate, key }: Root): Promise<Signer> {
  const privateKey = createPrivateKey(key.reveal())
  if (!new X509Certificate(certificate).checkPrivateKey(privateKey))
    throw new Error('they do not belong together')
  if (!isP256(privateKey)) throw new Error('the key is not P-256')
  const root = new x509.X509Certificate(certificate)
  const { rawData } = await x509.AuthorityKeyIdentifierExtension.create(root.publicKey)
  return {
    certificate: root.toString('pem'),
    key: privateKey,
    notAfterMs: root.notAfter.getTime(),
    subject: Buffer.from(root.subjectName.toArrayBuffer()),
    keyIdentifier: Buffer.from(rawData),
  }
}

/** A new root for the trust domain. */
export async function createRoot(trustDomain: string, lifetimeMs: number): Promise<Root> {
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serial().toString('hex'),
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

function isP256({ asymmetricKeyType, asymmetricKeyDetails }: KeyObject): boolean {
  return asymmetricKeyType === 'ec' && asymmetricKeyDetails?.namedCurve === 'prime256v1'
}

/** The key written anew, so that a certificate has nothing of what a client sent but a point that is on the curve. */
function p256KeyOf(spki: string): Buffer {
  const key = createPublicKey({ key: Buffer.from(spki, 'base64'), format: 'der', type: 'spki' })
  const { x, y } = isP256(key) ? key.export({ format: 'jwk' }) : {}
  if (x === undefined || y === undefined)
    throw new EdgeMeshError('unauthenticated', 'Cannot certify the key: it is not P-256.')
  return Buffer.concat([p256Header, Buffer.from(x, 'base64url'), Buffer.from(y, 'base64url')])
}

async function privatePem(key: webcrypto.CryptoKey): Promise<string> {
  const der = Buffer.from(await webcrypto.subtle.exportKey('pkcs8', key))
  return createPrivateKey({ key: der, format: 'der', type: 'pkcs8' })
    .export({ format: 'pem', type: 'pkcs8' })
    .toString()
}

/** 127 random bits; a serial number must be positive (RFC 5280). */
function serial(): Buffer {
  const bytes = randomBytes(16)
  bytes.writeUInt8(bytes.readUInt8(0) & 0x7f, 0)
  return bytes
}
