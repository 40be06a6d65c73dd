import 'reflect-metadata'
import { KeyObject, webcrypto, X509Certificate } from 'node:crypto'
import * as x509 from '@peculiar/x509'

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }

/** A self-signed certificate with any names, good or not. */
export async function certificateWith(names: x509.JsonGeneralNames | undefined): Promise<X509Certificate> {
  return new X509Certificate((await selfSigned(names)).cert)
}

/** A self-signed certificate and its key, both as PEM. */
export async function selfSigned(names?: x509.JsonGeneralNames): Promise<{ key: string; cert: string }> {
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    name: 'O=Test, CN=victim.pod.cluster.local',
    keys,
    signingAlgorithm: algorithm,
    extensions: names === undefined ? [] : [new x509.SubjectAlternativeNameExtension(names)],
  })
  const key = KeyObject.from(keys.privateKey).export({ type: 'pkcs8', format: 'pem' })
  return { key: String(key), cert: certificate.toString('pem') }
}
