import type { X509Certificate } from 'node:crypto'
import { EdgeMeshError } from './errors.ts'

/** Who a pod is: taken from its verified token by the server, and from its verified certificate by peers. */
export interface PodIdentity {
  trustDomain: string
  namespace: string
  serviceAccount: string
  podUid: string
}

/** `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, the leaf's URI SAN. */
export function spiffeIdOf(identity: Omit<PodIdentity, 'podUid'>): string {
  return `spiffe://${identity.trustDomain}/ns/${identity.namespace}/sa/${identity.serviceAccount}`
}

/** `<pod uid>.pod.<trust domain>`, the leaf's DNS SAN and the TLS server name by which a pod is dialled. */
export function podServerName(podUid: string, trustDomain: string): string {
  return `${podUid}.pod.${trustDomain}`
}

/** DNS SAN of the server's own certificate, whatever address it is reached at. */
export function serverNameOf(trustDomain: string): string {
  return `edgemesh-server.${trustDomain}`
}

/** Whether a certificate that TLS has verified is the server's: its one name, and no other. */
export function isServerCertificate(certificate: X509Certificate | undefined, trustDomain: string): boolean {
  return certificate?.subjectAltName === `DNS:${serverNameOf(trustDomain)}`
}

const spiffePattern = /^spiffe:\/\/([^/]+)\/ns\/([^/]+)\/sa\/([^/]+)$/

/**
 * Reads the identity out of a certificate that TLS has verified. Exactly one URI and one DNS SAN, matched exactly
 * against our trust domain; anything else is `identity-mismatch`.
 */
export function identityOf(certificate: X509Certificate, trustDomain: string): PodIdentity {
  const fail = (why: string): never => {
    throw new EdgeMeshError(
      'identity-mismatch',
      `Cannot accept the certificate: ${why}. It must be issued by this mesh's server.`,
    )
  }
  // Names with quotes, commas or control characters are printed quoted by OpenSSL's printer; ours never have them.
  const names = (certificate.subjectAltName ?? '').split(', ')
  const uris = names.filter((n) => n.startsWith('URI:')).map((n) => n.slice(4))
  const dns = names.filter((n) => n.startsWith('DNS:')).map((n) => n.slice(4))
  if (names.length !== 2 || uris.length !== 1 || dns.length !== 1) fail('it needs one URI and one DNS name')
  const match = spiffePattern.exec(uris[0] ?? '')
  if (match === null || match[1] !== trustDomain) fail(`${uris[0]} is not of trust domain ${trustDomain}`)
  const suffix = `.pod.${trustDomain}`
  const name = dns[0] ?? ''
  const podUid = name.slice(0, -suffix.length)
  if (!name.endsWith(suffix) || podUid === '' || podUid.includes('.'))
    fail(`${name} is not a pod of ${trustDomain}`)
  return { trustDomain, namespace: match?.[2] ?? '', serviceAccount: match?.[3] ?? '', podUid }
}
