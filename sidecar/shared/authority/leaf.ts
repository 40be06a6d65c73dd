import { EdgeMeshError } from '#shared/errors.ts'

/** A name of the subject (RFC 5280, 4.2.1.6). */
export interface LeafName {
  type: 'url' | 'dns'
  value: string
}

/** What a leaf says; everything that is `Buffer` is DER already, but for the serial. */
export interface LeafFields {
  /** Big-endian and positive: its first bit is 0. */
  serial: Buffer
  /** The subject of the root. */
  issuer: Buffer
  notBefore: Date
  notAfter: Date
  /** A SubjectPublicKeyInfo. */
  publicKey: Buffer
  names: readonly LeafName[]
  /** All but the names. */
  extensions: readonly Buffer[]
}

const tags = {
  integer: 0x02,
  bitString: 0x03,
  octetString: 0x04,
  utcTime: 0x17,
  generalizedTime: 0x18,
  sequence: 0x30,
  version: 0xa0,
  extensions: 0xa3,
  dnsName: 0x82,
  url: 0x86,
} as const

const version3 = Buffer.from([0xa0, 3, tags.integer, 1, 2])
/** ecdsa-with-SHA256 (RFC 5758, 3.2). */
const algorithm = Buffer.from('300a06082a8648ce3d040302', 'hex')
/** subjectAltName and that it is critical, since the subject is empty. */
const criticalNames = Buffer.from('0603551d110101ff', 'hex')
/** The first year that a UTCTime cannot say (RFC 5280, 4.1.2.5). */
const generalizedFrom = 2050

/**
 * The part of a leaf that is signed. A library takes 3 ms for a certificate, which would be half of what the return of a
 * sidecar costs the server; this is one shape, and takes microseconds.
 */
export function tbsOf({
  serial,
  issuer,
  notBefore,
  notAfter,
  publicKey,
  names,
  extensions,
}: LeafFields): Buffer {
  const validity = tlv(tags.sequence, timeOf(notBefore), timeOf(notAfter))
  const all = tlv(tags.sequence, ...extensions, namesOf(names))
  const noSubject = tlv(tags.sequence)
  return tlv(
    tags.sequence,
    ...[version3, tlv(tags.integer, minimal(serial)), algorithm, issuer, validity, noSubject, publicKey],
    tlv(tags.extensions, all),
  )
}

/** The whole certificate, PEM. `signature` is that of ECDSA with SHA-256, DER. */
export function certificateOf(tbs: Buffer, signature: Buffer): string {
  const der = tlv(tags.sequence, tbs, algorithm, tlv(tags.bitString, Buffer.of(0), signature))
  const lines = der.toString('base64').replaceAll(/.{64}(?=.)/g, '$&\n')
  return `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`
}

function namesOf(names: readonly LeafName[]): Buffer {
  const all = names.map(({ type, value }) => {
    // What is no visible ASCII has no place in an IA5String, and would be read otherwise than it was meant.
    if (!/^[\x21-\x7e]+$/.test(value))
      throw new EdgeMeshError(
        'forbidden',
        `Cannot certify the name ${JSON.stringify(value)}: it is not ASCII.`,
      )
    return tlv(type === 'dns' ? tags.dnsName : tags.url, Buffer.from(value, 'latin1'))
  })
  return tlv(tags.sequence, criticalNames, tlv(tags.octetString, tlv(tags.sequence, ...all)))
}

/** Whole seconds, UTC. */
function timeOf(date: Date): Buffer {
  const digits = date.toISOString().replaceAll(/[-:T]|\..*/g, '')
  const isShort = date.getUTCFullYear() < generalizedFrom
  const text = `${isShort ? digits.slice(2) : digits}Z`
  return tlv(isShort ? tags.utcTime : tags.generalizedTime, Buffer.from(text, 'latin1'))
}

/** DER wants no leading zeros but one before a set first bit. */
function minimal(number: Buffer): Buffer {
  let from = 0
  while (from < number.length - 1 && number[from] === 0 && (number[from + 1] ?? 0) < 0x80) from++
  return number.subarray(from)
}

function tlv(tag: number, ...parts: readonly Buffer[]): Buffer {
  const length = parts.reduce((sum, part) => sum + part.length, 0)
  return Buffer.concat([headerOf(tag, length), ...parts])
}

function headerOf(tag: number, length: number): Buffer {
  if (length < 0x80) return Buffer.of(tag, length)
  if (length < 0x100) return Buffer.of(tag, 0x81, length)
  return Buffer.of(tag, 0x82, length >> 8, length & 0xff) // 64 KiB: no name is near it
}
