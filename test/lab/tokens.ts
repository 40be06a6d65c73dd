import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { exportJWK, exportPKCS8, generateKeyPair, importPKCS8, SignJWT } from 'jose'

export const issuer = 'https://lab.edgemesh.test'
const lifetimeSeconds = 86_400

/** Makes the key that signs the lab's pod tokens, as a cluster's API server has one; `keys.json` is for the server. */
export async function makeKeys(folder: string): Promise<void> {
  const { privateKey, publicKey } = await generateKeyPair('ES256', { extractable: true })
  writeFileSync(join(folder, 'token.key'), await exportPKCS8(privateKey), { mode: 0o600 })
  const jwk = { ...(await exportJWK(publicKey)), kid: 'lab', alg: 'ES256', use: 'sig' }
  writeFileSync(join(folder, 'keys.json'), JSON.stringify({ keys: [jwk] }))
}

/** A token as the kubelet projects it; `claims` replaces some of its claims. */
export async function signToken(
  folder: string,
  pod: { name: string; namespace: string; uid: string },
  claims: Record<string, unknown>,
): Promise<string> {
  const key = await importPKCS8(readFileSync(join(folder, 'token.key'), 'utf8'), 'ES256')
  const { namespace, name, uid } = pod
  const now = Math.floor(Date.now() / 1_000)
  const payload = {
    iss: issuer,
    sub: `system:serviceaccount:${namespace}:default`,
    aud: ['edgemesh'],
    iat: now,
    nbf: now,
    exp: now + lifetimeSeconds,
    'kubernetes.io': { namespace, pod: { name, uid }, serviceaccount: { name: 'default', uid } },
    ...claims,
  }
  return new SignJWT(payload).setProtectedHeader({ alg: 'ES256', kid: 'lab' }).sign(key)
}
