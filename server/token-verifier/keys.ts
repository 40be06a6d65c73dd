import { readFileSync, statSync } from 'node:fs'
import { createLocalJWKSet, type JSONWebKeySet, jwtVerify } from 'jose'
import { kubernetesName, podUid } from '#shared/catalogue.ts'
import { codeOf, EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import type { Logger } from '#shared/log.ts'
import type { Secret } from '#shared/secret.ts'
import { object } from '#shared/shape.ts'
import { audience, type TokenVerifier, type VerifiedToken } from './verifier.ts'

/** Signatures by a public key only: an HMAC would make the public key a secret that forges tokens. */
const algorithms = ['ES256', 'ES384', 'ES512', 'RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'EdDSA']

const claims = object({
  'kubernetes.io': object({
    namespace: kubernetesName,
    pod: object({ name: kubernetesName, uid: podUid }),
    serviceaccount: object({ name: kubernetesName }),
  }),
})

/** Verifies tokens against the keys of a JWKS file, which is read again whenever it changes. */
export class KeyVerifier implements TokenVerifier {
  readonly #file: string
  readonly #issuer: string
  readonly #log: Logger
  #stamp = ''
  #keys: ReturnType<typeof createLocalJWKSet>

  /** `bad-config` when the file cannot be used at the start; later the last good keys stay. */
  constructor(file: string, issuer: string, log: Logger) {
    this.#file = file
    this.#issuer = issuer
    this.#log = log
    try {
      this.#stamp = stampOf(file)
      this.#keys = readKeys(file)
    } catch (error) {
      const why = sentenceOf(error)
      throw new EdgeMeshError(
        'bad-config',
        `Cannot read token keys: ${file}: ${why}. It must be a JWKS.`,
        error,
      )
    }
  }

  async verify(token: Secret): Promise<VerifiedToken> {
    this.#refresh()
    try {
      const { payload } = await jwtVerify(token.reveal(), this.#keys, {
        algorithms,
        audience,
        issuer: this.#issuer,
        clockTolerance: 60,
        requiredClaims: ['exp', 'iat', 'sub'],
      })
      const { namespace, pod, serviceaccount } = claims(payload, 'token')['kubernetes.io']
      return { namespace, serviceAccount: serviceaccount.name, podUid: pod.uid, podName: pod.name }
    } catch (error) {
      throw new EdgeMeshError(
        'unauthenticated',
        `Cannot accept the token: ${sentenceOf(error)} (${codeOf(error)}).`,
      )
    }
  }

  #refresh(): void {
    try {
      const stamp = stampOf(this.#file)
      if (stamp === this.#stamp) return
      this.#stamp = stamp
      this.#keys = readKeys(this.#file)
    } catch (error) {
      this.#log.warn(
        { file: this.#file, error: sentenceOf(error) },
        'cannot read the token keys; keeping the last',
      )
    }
  }
}

function stampOf(file: string): string {
  const { ino, size, mtimeMs } = statSync(file)
  return `${ino} ${size} ${mtimeMs}`
}

function readKeys(file: string): ReturnType<typeof createLocalJWKSet> {
  return createLocalJWKSet(JSON.parse(readFileSync(file, 'utf8')) as JSONWebKeySet)
}
