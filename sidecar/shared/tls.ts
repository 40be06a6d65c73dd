import { createPublicKey, generateKeyPair, hash, sign, verify } from 'node:crypto'
import { promisify } from 'node:util'
import { Secret } from './secret.ts'
import { type CertificateRequest, proofInput } from './wire.ts'

/** TLS 1.3 only, everywhere. Sessions are never resumed: a resumed one skips the check of the peer's certificate. */
export const tlsFloor = { minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3' } as const

/** How long a TLS handshake may take, in ms. */
export const handshakeDeadlineMs = 10_000

export interface KeyPair {
  /** PKCS#8 PEM. */
  privateKey: Secret
  /** SPKI DER, base64. */
  publicKey: string
}

/** A new P-256 key pair. */
export async function createKeyPair(): Promise<KeyPair> {
  const pair = await promisify(generateKeyPair)('ec', {
    namedCurve: 'P-256',
    publicKeyEncoding: { type: 'spki', format: 'der' },
    privateKeyEncoding: { type: 'pkcs8', format: 'pem' },
  })
  return { privateKey: new Secret(pair.privateKey), publicKey: pair.publicKey.toString('base64') }
}

export function createCertificateRequest(keys: KeyPair, token: Secret): CertificateRequest {
  const proof = sign('sha256', proofInput(token.reveal()), keys.privateKey.reveal())
  return { token: token.reveal(), publicKey: keys.publicKey, proof: proof.toString('base64') }
}

/** True when the request's key is P-256 and its proof was made with the private half. Never throws. */
export function isProofValid(request: CertificateRequest): boolean {
  try {
    const key = createPublicKey({
      key: Buffer.from(request.publicKey, 'base64'),
      format: 'der',
      type: 'spki',
    })
    if (key.asymmetricKeyType !== 'ec' || key.asymmetricKeyDetails?.namedCurve !== 'prime256v1') return false
    return verify('sha256', proofInput(request.token), key, Buffer.from(request.proof, 'base64'))
  } catch {
    return false // unparsable key or signature: refused like a wrong one
  }
}

/** By which two can tell whether they mean the same trust bundle: SHA-256, hex. */
export function digestOf(trustBundle: string): string {
  return hash('sha256', trustBundle)
}

export type HandshakeFailure =
  | 'expired'
  /** Our own certificate, not the peer's. */
  | 'own-expired'
  | 'not-yet-valid'
  | 'untrusted'
  | 'wrong-identity'
  | 'no-certificate'
  | 'timeout'
  | 'reset'
  | 'protocol'

/** Sorts what OpenSSL and Node say of a failed handshake, for metrics and logs. */
export function handshakeFailureOf(error: unknown): HandshakeFailure {
  const code = String((error as { code?: unknown } | null)?.code ?? '')
  if (code === 'unauthenticated') return 'own-expired'
  if (code === 'CERT_HAS_EXPIRED' || code.includes('CERTIFICATE_EXPIRED')) return 'expired'
  if (code === 'CERT_NOT_YET_VALID') return 'not-yet-valid'
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID' || code === 'identity-mismatch') return 'wrong-identity'
  if (code.includes('PEER_DID_NOT_RETURN_A_CERTIFICATE') || code.includes('CERTIFICATE_REQUIRED'))
    return 'no-certificate'
  if (code === 'ERR_TLS_HANDSHAKE_TIMEOUT' || code === 'timeout') return 'timeout'
  if (code === 'ECONNRESET' || code === 'EPIPE') return 'reset'
  if (/SELF_SIGNED|UNABLE_TO_|CERT_|UNKNOWN_CA|BAD_CERTIFICATE/.test(code)) return 'untrusted'
  return 'protocol'
}
