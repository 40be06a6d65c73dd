import 'reflect-metadata'
import { generateKeyPairSync, randomBytes, webcrypto } from 'node:crypto'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import * as x509 from '@peculiar/x509'
import { addresses, apiServerClusterIP, apiServerUrl, clusterDomain, nodes } from './layout.ts'

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const
const lifetimeMs = 30 * 86_400_000
const serverAuth = '1.3.6.1.5.5.7.3.1'
const clientAuth = '1.3.6.1.5.5.7.3.2'

interface Signed {
  /** PEM both. */
  certificate: string
  key: string
}

/** The users of the API server by the name of their kubeconfig: common name, and group where there is one. */
const users: Readonly<Record<string, readonly [commonName: string, group?: string]>> = {
  admin: ['admin', 'system:masters'],
  'controller-manager': ['system:kube-controller-manager'],
  scheduler: ['system:kube-scheduler'],
  proxy: ['system:kube-proxy'],
  ...Object.fromEntries(nodes.map((node) => [node, [`system:node:${node}`, 'system:nodes']])),
}

/** Writes the CA, the API server's certificates, the key of service accounts and a kubeconfig of every user. */
export async function makePki(folder: string): Promise<void> {
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  const put = (name: string, content: string) => writeFileSync(join(folder, name), content, { mode: 0o600 })
  const putPair = (name: string, { certificate, key }: Signed) => {
    put(`${name}.crt`, certificate)
    put(`${name}.key`, key)
  }
  const authority = await makeAuthority()
  put('ca.crt', authority.certificate.toString('pem'))
  put('ca.key', await privatePem(authority.key))
  putPair('apiserver', await authority.sign('CN=kube-apiserver', serverAuth, apiServerNames))
  putPair(
    'kubelet-client',
    await authority.sign('O=system:masters, CN=kube-apiserver-kubelet-client', clientAuth),
  )
  for (const [name, [commonName, group]] of Object.entries(users)) {
    const subject = `${group === undefined ? '' : `O=${group}, `}CN=${commonName}`
    const signed = await authority.sign(subject, clientAuth)
    put(`${name}.kubeconfig`, kubeconfig(authority.certificate.toString('pem'), signed))
  }
  // RS256, as the tokens of most clusters are signed.
  const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
  put('service-accounts.key', privateKey.export({ type: 'pkcs8', format: 'pem' }) as string)
  put('service-accounts.pub', publicKey.export({ type: 'spki', format: 'pem' }) as string)
}

const apiServerNames: x509.JsonGeneralNames = [
  ...[
    'kubernetes',
    'kubernetes.default',
    'kubernetes.default.svc',
    `kubernetes.default.svc.${clusterDomain}`,
  ].map((value) => ({ type: 'dns', value }) as const),
  ...['127.0.0.1', addresses.cloud, apiServerClusterIP].map((value) => ({ type: 'ip', value }) as const),
]

async function makeAuthority() {
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    ...validity(),
    name: 'CN=edgemesh-cluster-ca',
    keys,
    signingAlgorithm: algorithm,
    extensions: [
      new x509.BasicConstraintsExtension(true, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  })
  const sign = async (subject: string, usage: string, names: x509.JsonGeneralNames = []): Promise<Signed> => {
    const own = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
    const leaf = await x509.X509CertificateGenerator.create({
      ...validity(),
      subject,
      issuer: certificate.subject,
      publicKey: own.publicKey,
      signingKey: keys.privateKey,
      signingAlgorithm: algorithm,
      extensions: [
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension([usage]),
        await x509.AuthorityKeyIdentifierExtension.create(keys.publicKey),
        ...(names.length === 0 ? [] : [new x509.SubjectAlternativeNameExtension(names)]),
      ],
    })
    return { certificate: leaf.toString('pem'), key: await privatePem(own.privateKey) }
  }
  return { certificate, key: keys.privateKey, sign }
}

/** Everything is inside, so that the file can be used wherever the API server's address can be reached. */
function kubeconfig(ca: string, { certificate, key }: Signed): string {
  const base64 = (pem: string) => Buffer.from(pem).toString('base64')
  const config = {
    apiVersion: 'v1',
    kind: 'Config',
    clusters: [
      { name: 'edgemesh', cluster: { server: apiServerUrl, 'certificate-authority-data': base64(ca) } },
    ],
    users: [
      {
        name: 'user',
        user: { 'client-certificate-data': base64(certificate), 'client-key-data': base64(key) },
      },
    ],
    contexts: [{ name: 'edgemesh', context: { cluster: 'edgemesh', user: 'user' } }],
    'current-context': 'edgemesh',
  }
  return `${JSON.stringify(config, undefined, 2)}\n` // JSON is YAML
}

function validity() {
  const serialNumber = `01${randomBytes(15).toString('hex')}` // positive and of 16 bytes
  return {
    serialNumber,
    notBefore: new Date(Date.now() - 60_000),
    notAfter: new Date(Date.now() + lifetimeMs),
  }
}

async function privatePem(key: webcrypto.CryptoKey): Promise<string> {
  return x509.PemConverter.encode(await webcrypto.subtle.exportKey('pkcs8', key), 'PRIVATE KEY')
}
