import { randomBytes } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { regionOf, tagBytes } from '../../../../sidecar/shared/tls13/aead.ts'
import {
  lengthAfter,
  Nonces,
  nonce,
  putNonce,
  trafficKeyOf,
  typeAt,
  wordsOf,
  writeHeader,
} from '../../../../sidecar/shared/tls13/record.ts'

describe('the keys of a direction', () => {
  it('are those of RFC 8448 for its traffic secret', () => {
    // RFC 8448, 3: server application traffic secret of the simple handshake.
    const secret = 'a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643'
    const { key, iv } = trafficKeyOf(Buffer.from(secret, 'hex'))
    expect(Buffer.from(key).toString('hex')).toBe('9f02283b6c9c07efc26bb9f2ac92e356')
    expect(Buffer.from(iv).toString('hex')).toBe('cf782b88dd83549aadf1e984')
  })
})

describe('the nonce of a record', () => {
  const iv = randomBytes(12)
  const ofRfc = (number: number) => {
    const padded = BigInt(`0x${iv.toString('hex')}`) ^ BigInt(number)
    return padded.toString(16).padStart(24, '0')
  }

  it.each([0, 1, 255, 256, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + 1, 2 ** 48 - 1, 2 ** 53 - 1])(
    'is that of RFC 8446, 5.3, for record %i',
    (number) => {
      putNonce(wordsOf(iv), number)
      expect(nonce.bytes.toString('hex')).toBe(ofRfc(number))
    },
  )

  it('is read from an IV wherever that lies', () => {
    const around = Buffer.concat([randomBytes(3), iv, randomBytes(3)])
    putNonce(wordsOf(around.subarray(3, 15)), 1)
    expect(nonce.bytes.toString('hex')).toBe(ofRfc(1))
  })

  it('is another each time, and there are no more than the key may have', () => {
    const nonces = new Nonces(iv, 3)
    const seen = [0, 1, 2].map((number) => {
      expect(nonces.next()).toBe(true)
      expect(nonce.bytes.toString('hex')).toBe(ofRfc(number))
      return nonce.bytes.toString('hex')
    })
    expect(new Set(seen).size).toBe(3)
    expect(nonces.next()).toBe(false)
    expect(nonce.bytes.toString('hex'), 'nothing is put there then').toBe(ofRfc(2))
  })
})

describe('the header of a record', () => {
  it.each([tagBytes + 1, 255, 256, 16_401, 16_640])(
    'with %i bytes after it is read as it was written',
    (length) => {
      const bytes = Buffer.alloc(10, 0xff)
      writeHeader(bytes, 2, length)
      expect(lengthAfter(bytes, 2)).toBe(length)
      expect([bytes[0], bytes[1], bytes[7]], 'nothing beside it').toEqual([0xff, 0xff, 0xff])
    },
  )

  it.each([
    ['a record in the clear', [22, 3, 3, 0, 100]],
    ['another version', [23, 3, 1, 0, 100]],
    ['no room for a type', [23, 3, 3, 0, tagBytes]],
    ['more than a record may hold', [23, 3, 3, 0x41, 1]],
  ])('is refused: %s', (_what, header) => {
    expect(lengthAfter(Buffer.from(header), 0)).toBeUndefined()
  })
})

it.each([
  ['right behind the content', [1, 2, 23], 2],
  ['before padding', [1, 2, 23, 0, 0, 0], 2],
  ['alone', [23], 0],
  ['nowhere', [0, 0, 0], -1],
])('the type of what a record held is the last byte that is no padding: %s', (_where, inner, at) => {
  const around = Buffer.from([9, ...inner, 9])
  expect(typeAt(around, 1, 1 + inner.length)).toBe(at < 0 ? -1 : 1 + at)
})

it('a region has the address of its bytes, also of a part of others', () => {
  const bytes = Buffer.alloc(64)
  expect(regionOf(bytes.subarray(5)).address - regionOf(bytes).address).toBe(5)
})
