import { X509Certificate } from 'node:crypto'
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { SecureContextOptions } from 'node:tls'
import { EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { identityOf } from '#shared/identity.ts'
import type { Logger } from '#shared/log.ts'
import { Secret } from '#shared/secret.ts'
import { object, parseJson, text } from '#shared/shape.ts'
import { createKeyPair, type KeyPair, tlsFloor } from '#shared/tls.ts'
import { type IssuedCertificate, issuedCertificate } from '#shared/wire.ts'

const fileName = 'identity.json'
const keptIdentity = object({ privateKey: text(4_096), publicKey: text(512), certificate: issuedCertificate })

/**
 * This pod's key and certificate, replaced live at each renewal. Listeners are told, so that the tunnel endpoint
 * serves the new one at once. With a folder (memory-backed) both survive a restart of the container.
 */
export class Identity {
  readonly keys: KeyPair
  readonly podUid: string
  readonly trustDomain: string
  #certificate: IssuedCertificate | undefined
  readonly #folder: string | undefined
  readonly #log: Logger
  readonly #listeners: (() => void)[] = []

  private constructor(
    keys: KeyPair,
    self: { podUid: string; trustDomain: string; folder: string | undefined },
    log: Logger,
  ) {
    this.keys = keys
    this.podUid = self.podUid
    this.trustDomain = self.trustDomain
    this.#folder = self.folder
    this.#log = log
  }

  /** Takes up the kept identity where it is still this pod's, expired or not; else makes a new key. */
  static async open(
    self: { podUid: string; trustDomain: string; folder: string | undefined },
    log: Logger,
  ): Promise<Identity> {
    const kept = self.folder === undefined ? undefined : readKept(join(self.folder, fileName), log)
    if (kept !== undefined) {
      const keys = { privateKey: new Secret(kept.privateKey), publicKey: kept.publicKey }
      const identity = new Identity(keys, self, log)
      try {
        identity.#check(kept.certificate)
        identity.#certificate = kept.certificate
        return identity
      } catch (error) {
        log.warn({ error: sentenceOf(error) }, 'the kept identity is of no use; making a new key')
      }
    }
    return new Identity(await createKeyPair(), self, log)
  }

  get certificate(): IssuedCertificate | undefined {
    return this.#certificate
  }

  /** Called after each replacement. */
  onChange(listener: () => void): void {
    this.#listeners.push(listener)
  }

  /** Takes a new certificate into use; `identity-mismatch` when it is not for this pod and key. */
  replace(certificate: IssuedCertificate): void {
    this.#check(certificate)
    this.#certificate = certificate
    this.#keep(certificate)
    for (const listener of this.#listeners) listener()
  }

  /** TLS options to show this identity and to verify peers; `unauthenticated` before the first certificate. */
  tlsOptions(): SecureContextOptions {
    const { chain, trustBundle } = this.#certificate ?? {}
    if (chain === undefined || trustBundle === undefined) {
      throw new EdgeMeshError(
        'unauthenticated',
        'Cannot use the tunnel: this pod has no certificate yet. The server issues it; see the log for why it has not.',
      )
    }
    return { ...tlsFloor, key: this.keys.privateKey.reveal(), cert: chain, ca: trustBundle }
  }

  #check(certificate: IssuedCertificate): void {
    const leaf = new X509Certificate(certificate.chain)
    const spki = leaf.publicKey.export({ type: 'spki', format: 'der' }).toString('base64')
    const { podUid } = identityOf(leaf, this.trustDomain)
    if (podUid !== this.podUid || spki !== this.keys.publicKey) {
      throw new EdgeMeshError(
        'identity-mismatch',
        'Cannot use the certificate: it is not for this pod and key.',
      )
    }
  }

  #keep(certificate: IssuedCertificate): void {
    if (this.#folder === undefined) return
    try {
      mkdirSync(this.#folder, { recursive: true, mode: 0o700 })
      const path = join(this.#folder, fileName)
      const { privateKey, publicKey } = this.keys
      writeFileSync(
        `${path}.new`,
        JSON.stringify({ privateKey: privateKey.reveal(), publicKey, certificate }),
        {
          mode: 0o600,
        },
      )
      renameSync(`${path}.new`, path)
    } catch (error) {
      this.#log.warn({ error: sentenceOf(error) }, 'the identity is not kept: a restart will need the server')
    }
  }
}

function readKept(path: string, log: Logger) {
  try {
    return parseJson(readFileSync(path, 'utf8'), keptIdentity)
  } catch (error) {
    log.debug({ error: sentenceOf(error) }, 'no kept identity')
    return undefined
  }
}
