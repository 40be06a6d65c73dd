import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type CryptoKey, exportSPKI, importJWK, SignJWT, UnsecuredJWT } from 'jose'
import { afterAll, beforeEach, describe, expect, it } from 'vitest'
import { KeyVerifier } from '../../../server/token-verifier/keys.ts'
import { createLogger } from '../../../sidecar/shared/log.ts'
import { Secret } from '../../../sidecar/shared/secret.ts'
import { claimsOf, createIssuer, issuer, log, pod } from '../harness.ts'

const folder = await mkdtemp(join(tmpdir(), 'edgemesh-keys-'))
const file = join(folder, 'keys.json')
const alice = pod('alice')
const [ours, theirs] = await Promise.all([createIssuer(), createIssuer()])
const now = Math.floor(Date.now() / 1_000)

beforeEach(() => replace(ours.jwks))
afterAll(() => rm(folder, { recursive: true }))

async function replace(text: string): Promise<void> {
  await writeFile(`${file}.new`, text)
  await rename(`${file}.new`, file)
}

const verified = { namespace: 'shop', serviceAccount: 'alice', podUid: 'uid-alice', podName: 'alice' }
const kubernetes = claimsOf(alice)['kubernetes.io']

/** Signed with the published public key as if it were a shared secret. */
async function hs256(): Promise<string> {
  const jwk = JSON.parse(ours.jwks).keys[0]
  const pem = await exportSPKI((await importJWK({ ...jwk, ext: true }, 'ES256')) as CryptoKey)
  return new SignJWT(claimsOf(alice)).setProtectedHeader({ alg: 'HS256', kid: 'k1' }).sign(Buffer.from(pem))
}

async function withoutSignature(): Promise<string> {
  return `${(await ours.token(alice)).split('.').slice(0, 2).join('.')}.`
}

/** The payload of another pod under a signature that was made for Alice's. */
async function transplanted(): Promise<string> {
  const [header, , signature] = (await ours.token(alice)).split('.')
  return [header, (await ours.token(pod('bob'))).split('.')[1], signature].join('.')
}

const refused: [string, () => Promise<string> | string][] = [
  ['for another audience', () => ours.token(alice, { aud: ['https://kubernetes.default.svc'] })],
  ['for no audience', () => ours.token(alice, { aud: undefined })],
  ['of another issuer by name', () => ours.token(alice, { iss: 'https://evil.example' })],
  ['of another issuer by key', () => theirs.token(alice)],
  ['that has expired', () => ours.token(alice, { iat: now - 900, nbf: now - 900, exp: now - 300 })],
  ['that never expires', () => ours.token(alice, { exp: undefined })],
  ['that is not valid yet', () => ours.token(alice, { nbf: now + 300 })],
  ['without subject', () => ours.token(alice, { sub: undefined })],
  ['without the claims of Kubernetes', () => ours.token(alice, { 'kubernetes.io': undefined })],
  [
    'that is bound to no pod',
    () => ours.token(alice, { 'kubernetes.io': { ...kubernetes, pod: undefined } }),
  ],
  [
    'with a pod without uid',
    () => ours.token(alice, { 'kubernetes.io': { ...kubernetes, pod: { name: 'x' } } }),
  ],
  ['with a uid of two labels', () => ours.token({ ...alice, uid: 'a.b' })],
  ['with a namespace that is a path', () => ours.token({ ...alice, namespace: 'a/sa/b' })],
  ['with alg none', () => new UnsecuredJWT(claimsOf(alice)).encode()],
  ['by HS256 with the public key as secret', hs256],
  ['without its signature', withoutSignature],
  ['with the payload of another', transplanted],
  ['that is none', () => 'garbage-garbage-garbage'],
  ['that is empty', () => ''],
]

describe('a token', () => {
  it('that is good says who its pod is', async () => {
    const verifier = new KeyVerifier(file, issuer, log)
    expect(await verifier.verify(new Secret(await ours.token(alice)))).toEqual(verified)
  })

  it.each(refused)('%s is refused, and not quoted', async (_what, make) => {
    const token = await make()
    const refusal = await new KeyVerifier(file, issuer, log).verify(new Secret(token)).catch((e) => e)
    expect(refusal).toMatchObject({ code: 'unauthenticated' })
    expect(refusal.message).toMatch(/^Cannot accept the token: /)
    for (const part of token.split('.').filter((p) => p !== '')) {
      expect(refusal.message).not.toContain(part)
      expect(String(refusal.stack)).not.toContain(part)
    }
  })
})

describe('the keys', () => {
  it.each([
    ['is missing', undefined],
    ['is empty', ''],
    ['is no JSON', '{'],
    ['is no JWKS', '{"key":[]}'],
    ['is a list', '[]'],
    ['is null', 'null'],
  ])('cannot be used at the start when the file %s', async (_what, text) => {
    if (text === undefined) await rm(file)
    else await replace(text)
    expect(() => new KeyVerifier(file, issuer, log)).toThrow(
      expect.objectContaining({
        code: 'bad-config',
        message: expect.stringMatching(`^Cannot read token keys: ${file}: .+ It must be a JWKS.$`),
      }),
    )
  })

  it('are replaced live', async () => {
    const verifier = new KeyVerifier(file, issuer, log)
    const [old, next] = [new Secret(await ours.token(alice)), new Secret(await theirs.token(alice))]
    await expect(verifier.verify(next)).rejects.toMatchObject({ code: 'unauthenticated' })
    await replace(theirs.jwks)
    expect(await verifier.verify(next)).toEqual(verified)
    await expect(verifier.verify(old)).rejects.toMatchObject({ code: 'unauthenticated' })
  })

  it('may be of several issuers during a rotation', async () => {
    const second = await createIssuer('k2')
    await replace(JSON.stringify({ keys: [ours, second].flatMap((i) => JSON.parse(i.jwks).keys) }))
    const verifier = new KeyVerifier(file, issuer, log)
    for (const by of [ours, second])
      expect(await verifier.verify(new Secret(await by.token(alice)))).toEqual(verified)
  })

  it.each([
    ['is broken', '{"keys":'],
    ['is no JWKS', '{"keys":7}'],
    ['is gone', undefined],
  ])('stay as they were while the file %s, which is said, and recover', async (_what, text) => {
    const lines: string[] = []
    const heard = createLogger('test', 'warn', { write: (line) => void lines.push(line) })
    const verifier = new KeyVerifier(file, issuer, heard)
    if (text === undefined) await rm(file)
    else await replace(text)
    expect(await verifier.verify(new Secret(await ours.token(alice)))).toEqual(verified)
    expect(lines.map((line) => JSON.parse(line))).toMatchObject([{ level: 'warn', file }])
    await replace(theirs.jwks)
    expect(await verifier.verify(new Secret(await theirs.token(alice)))).toEqual(verified)
  })
})
