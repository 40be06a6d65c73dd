import { KeyObject, sign, webcrypto, X509Certificate } from 'node:crypto'
import 'reflect-metadata'
import * as x509 from '@peculiar/x509'
import { describe, expect, it } from 'vitest'
import { certificateOf, type LeafName, tbsOf } from '../../../../sidecar/shared/authority/leaf.ts'

const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const
const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify'])
const publicKey = Buffer.from(await webcrypto.subtle.exportKey('spki', keys.publicKey))
const privateKey = KeyObject.from(keys.privateKey)
const issuer = new x509.Name('CN=EdgeMesh CA, O=cluster.local')
const usage = new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true)
const uri = (length: number): LeafName => ({ type: 'url', value: `spiffe://${'x'.repeat(length)}` })
const pod: LeafName = { type: 'dns', value: 'uid-alice.pod.cluster.local' }

interface Asked {
  serial: string
  notBefore: string
  notAfter: string
  names: LeafName[]
}

const ordinary: Asked = {
  serial: '7f'.repeat(16),
  notBefore: '2026-11-25T00:00:00.000Z',
  notAfter: '2026-11-26T23:59:59.000Z',
  names: [uri(20), pod],
}

function ours({ serial, notBefore, notAfter, names }: Asked): Buffer {
  return tbsOf({
    serial: Buffer.from(serial, 'hex'),
    issuer: Buffer.from(issuer.toArrayBuffer()),
    notBefore: new Date(notBefore),
    notAfter: new Date(notAfter),
    publicKey,
    names,
    extensions: [Buffer.from(usage.rawData)],
  })
}

/** The same of a library. */
async function theirs({ serial, notBefore, notAfter, names }: Asked): Promise<Buffer> {
  const certificate = await x509.X509CertificateGenerator.create({
    serialNumber: serial,
    issuer: issuer.toString(),
    subject: '',
    notBefore: new Date(notBefore),
    notAfter: new Date(notAfter),
    publicKey: keys.publicKey,
    signingKey: keys.privateKey,
    signingAlgorithm: algorithm,
    extensions: [usage, new x509.SubjectAlternativeNameExtension([...names], true)],
  })
  return Buffer.from(certificate.rawData)
}

describe('what is signed of a leaf', () => {
  it.each<[string, Partial<Asked>]>([
    ['an ordinary one', {}],
    ['a serial number that begins with zeros', { serial: `0000${'ab'.repeat(14)}` }],
    ['a serial number that begins with zeros that must not go', { serial: `00${'ff'.repeat(15)}` }],
    ['the smallest serial number', { serial: `${'00'.repeat(15)}01` }],
    ['a name of 127 bytes', { names: [uri(118)] }],
    ['a name of 128 bytes', { names: [uri(119)] }],
    ['a name of 255 bytes', { names: [uri(246), pod] }],
    ['a name of 256 bytes', { names: [uri(247), pod] }],
    ['names of some kilobytes', { names: [uri(3_000), pod, uri(3_000)] }],
    ['an end in the last second of 2049', { notAfter: '2049-12-31T23:59:59.000Z' }],
    ['an end in 2050', { notAfter: '2050-01-01T00:00:00.000Z' }],
    ['a time before 2050 that is long ago', { notBefore: '1999-01-02T03:04:05.678Z' }],
  ])('is byte for byte what a library makes: %s', async (_what, asked) => {
    const whole = await theirs({ ...ordinary, ...asked })
    const tbs = ours({ ...ordinary, ...asked })
    const from = 4 // what is around it begins with a tag and three bytes of length
    expect(whole.subarray(from, from + tbs.length).toString('hex')).toBe(tbs.toString('hex'))
  })

  it.each(['', 'spiffe://a b', 'spiffe://ä', 'spiffe://a\0b', 'spiffe://a\n'])(
    'has no name like %j',
    (value) => {
      expect(() => ours({ ...ordinary, names: [{ type: 'url', value }] })).toThrow(/Cannot certify the name/)
    },
  )
})

describe('a leaf', () => {
  it('is read by OpenSSL, says what it was given, and has the signature', () => {
    const tbs = ours(ordinary)
    const leaf = new X509Certificate(certificateOf(tbs, sign('sha256', tbs, privateKey)))
    expect(leaf.subjectAltName).toBe(`URI:spiffe://${'x'.repeat(20)}, DNS:uid-alice.pod.cluster.local`)
    expect(leaf.serialNumber).toBe('7F'.repeat(16))
    expect(leaf.issuer).toBe('CN=EdgeMesh CA\nO=cluster.local')
    expect([leaf.validFromDate, leaf.validToDate]).toEqual([
      new Date(ordinary.notBefore),
      new Date(ordinary.notAfter),
    ])
    expect(leaf.verify(leaf.publicKey)).toBe(true)
    expect(leaf.publicKey.export({ type: 'spki', format: 'der' })).toEqual(publicKey)
  })
})
