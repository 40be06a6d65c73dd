import { generateKeyPairSync, type KeyObject, sign } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { EdgeMeshError } from '../../../sidecar/shared/errors.ts'
import { Secret } from '../../../sidecar/shared/secret.ts'
import {
  createCertificateRequest,
  createKeyPair,
  handshakeFailureOf,
  isProofValid,
} from '../../../sidecar/shared/tls.ts'
import { type CertificateRequest, proofInput } from '../../../sidecar/shared/wire.ts'

const token = 'header.payload.signature'
const keys = await createKeyPair()
const good = createCertificateRequest(keys, new Secret(token))

function requestBy(pair: { publicKey: KeyObject; privateKey: KeyObject }, hash?: string): CertificateRequest {
  return {
    token,
    publicKey: pair.publicKey.export({ type: 'spki', format: 'der' }).toString('base64'),
    proof: sign(hash, proofInput(token), pair.privateKey).toString('base64'),
  }
}

const flipped = Buffer.from(good.proof, 'base64')
flipped[flipped.length - 1] = (flipped[flipped.length - 1] ?? 0) ^ 1
const bare = sign('sha256', Buffer.from(token), keys.privateKey.reveal()).toString('base64')

const refused: [string, CertificateRequest][] = [
  ['the proof of another token', { ...good, token: `${token}x` }],
  ['a proof with one bit changed', { ...good, proof: flipped.toString('base64') }],
  ['a proof by another key', { ...good, publicKey: (await createKeyPair()).publicKey }],
  ['a signature over the bare token', { ...good, proof: bare }],
  ['no proof', { ...good, proof: '' }],
  ['garbage for a proof', { ...good, proof: Buffer.alloc(70, 7).toString('base64') }],
  ['garbage for a key', { ...good, publicKey: Buffer.alloc(91, 7).toString('base64') }],
  ['no key', { ...good, publicKey: '' }],
  ['half a key', { ...good, publicKey: good.publicKey.slice(0, 40) }],
  ['the private key', { ...good, publicKey: keys.privateKey.reveal() }],
  ['a P-384 key', requestBy(generateKeyPairSync('ec', { namedCurve: 'P-384' }), 'sha256')],
  ['a secp256k1 key', requestBy(generateKeyPairSync('ec', { namedCurve: 'secp256k1' }), 'sha256')],
  ['an RSA key', requestBy(generateKeyPairSync('rsa', { modulusLength: 2_048 }), 'sha256')],
  ['an Ed25519 key', requestBy(generateKeyPairSync('ed25519'))],
]

describe('the proof of possession', () => {
  it('holds for the key and token that it was made with', () => {
    expect(isProofValid(good)).toBe(true)
    expect(good).toMatchObject({ token, publicKey: keys.publicKey })
  })

  it.each(refused)('does not hold with %s', (_name, request) => {
    expect(isProofValid(request)).toBe(false)
  })

  it('keeps the private key unprintable', () => {
    expect(JSON.stringify(keys)).not.toContain('PRIVATE KEY')
  })
})

const withCode = (code: string) => Object.assign(new Error('handshake'), { code })

describe('a failed handshake', () => {
  it.each([
    ['CERT_HAS_EXPIRED', 'expired'],
    ['ERR_SSL_SSLV3_ALERT_CERTIFICATE_EXPIRED', 'expired'],
    ['CERT_NOT_YET_VALID', 'not-yet-valid'],
    ['ERR_TLS_CERT_ALTNAME_INVALID', 'wrong-identity'],
    ['ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE', 'no-certificate'],
    ['ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED', 'no-certificate'],
    ['ERR_TLS_HANDSHAKE_TIMEOUT', 'timeout'],
    ['ECONNRESET', 'reset'],
    ['EPIPE', 'reset'],
    ['DEPTH_ZERO_SELF_SIGNED_CERT', 'untrusted'],
    ['SELF_SIGNED_CERT_IN_CHAIN', 'untrusted'],
    ['UNABLE_TO_VERIFY_LEAF_SIGNATURE', 'untrusted'],
    ['UNABLE_TO_GET_ISSUER_CERT_LOCALLY', 'untrusted'],
    ['CERT_SIGNATURE_FAILURE', 'untrusted'],
    ['ERR_SSL_TLSV1_ALERT_UNKNOWN_CA', 'untrusted'],
    ['ERR_SSL_WRONG_VERSION_NUMBER', 'protocol'],
    ['ERR_SSL_TLSV1_ALERT_PROTOCOL_VERSION', 'protocol'],
  ])('with %s counts as %s', (code, failure) => {
    expect(handshakeFailureOf(withCode(code))).toBe(failure)
  })

  it('counts as ours where we refused the peer', () => {
    expect(handshakeFailureOf(new EdgeMeshError('identity-mismatch', 'Cannot accept.'))).toBe(
      'wrong-identity',
    )
    expect(handshakeFailureOf(new EdgeMeshError('timeout', 'Cannot wait.'))).toBe('timeout')
    expect(handshakeFailureOf('a string')).toBe('protocol')
  })
})
