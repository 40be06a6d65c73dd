import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { RecordOpener, RecordSealer } from '../../../server/tls/records.ts'
import { contentTypes, maxPlain, trafficKeyOf } from '../../../sidecar/shared/tls13/record.ts'

const { applicationData } = contentTypes
const key = trafficKeyOf(randomBytes(32))
const opened = (opener: RecordOpener, bytes: Buffer) =>
  Buffer.concat(opener.open(bytes).map(({ plain }) => plain))

describe('records', () => {
  it.each([0, 1, maxPlain, maxPlain + 1, 100_000])('bring back %i bytes, in pieces of any size', (length) => {
    const plain = randomBytes(length)
    const bytes = new RecordSealer(key).seal(plain, applicationData)
    const opener = new RecordOpener(key)
    const parts: Buffer[] = []
    for (let at = 0, size = 1; at < bytes.length; at += size, size = (size * 7) % 5_003)
      parts.push(opened(opener, bytes.subarray(at, at + size)))
    expect(Buffer.concat(parts).equals(plain)).toBe(true)
  })

  it('never look the same twice', () => {
    const sealer = new RecordSealer(key)
    const one = sealer.seal(Buffer.from('same'), applicationData)
    expect(sealer.seal(Buffer.from('same'), applicationData).equals(one)).toBe(false)
  })

  it('are refused when they come again, or out of order', () => {
    const sealer = new RecordSealer(key)
    const [one, two] = ['one', 'two'].map((text) => sealer.seal(Buffer.from(text), applicationData)) as [
      Buffer,
      Buffer,
    ]
    expect(() => new RecordOpener(key).open(two)).toThrow('not made by the peer')
    expect(() => new RecordOpener(key).open(Buffer.concat([one, one]))).toThrow('not made by the peer')
  })

  it('are refused when any bit of them is changed', () => {
    const sealed = new RecordSealer(key).seal(Buffer.from('hello'), applicationData)
    for (let bit = 0; bit < sealed.length * 8; bit++) {
      const bad = Buffer.from(sealed)
      bad[bit >> 3] = (bad[bit >> 3] ?? 0) ^ (1 << (bit & 7))
      const read = () => new RecordOpener(key).open(bad)
      // A length that became longer waits for bytes that never come.
      if (bad.readUInt16BE(3) > sealed.length - 5 && bad.readUInt16BE(3) <= maxPlain + 256)
        expect(read()).toEqual([])
      else expect(read).toThrow('Cannot read the TLS record')
    }
  })

  it('are refused when they are empty again and again, and not when they are so now and then', () => {
    const [sealer, opener] = [new RecordSealer(key), new RecordOpener(key)]
    const empty = () => sealer.seal(new Uint8Array(), applicationData)
    for (let i = 0; i < 32; i++) expect(opener.open(empty())).toHaveLength(1)
    expect(opener.open(sealer.seal(Buffer.from('x'), applicationData))).toHaveLength(1)
    for (let i = 0; i < 32; i++) expect(opener.open(empty())).toHaveLength(1)
    expect(() => opener.open(empty())).toThrow('too many before it were empty')
  })

  it('are no more made or taken once their key has protected as many as it may', () => {
    const [sealer, opener] = [new RecordSealer(key, 2), new RecordOpener(key, 2)]
    const other = new RecordSealer(key)
    const next = () => other.seal(Buffer.from('x'), applicationData)
    for (let i = 0; i < 2; i++)
      expect(opened(opener, sealer.seal(Buffer.from('x'), applicationData))).toEqual(Buffer.from('x'))
    expect(() => sealer.seal(Buffer.from('x'), applicationData)).toThrow('as much as it may')
    const third = [next(), next(), next()][2] as Buffer
    expect(() => opener.open(third)).toThrow('as much as it may')
  })

  it('have the numbers of RFC 8446, 5.3, also beyond a byte and two', () => {
    const sealer = new RecordSealer(key)
    const opener = new RecordOpener(key)
    for (let i = 0; i < 2 ** 16 + 2; i++) {
      const record = sealer.seal(Buffer.from('x'), applicationData)
      if (![0, 255, 256, 2 ** 16 - 1, 2 ** 16, 2 ** 16 + 1].includes(i)) {
        opener.open(record)
        continue
      }
      const nonce = Buffer.from(key.iv)
      nonce.writeUInt32BE((nonce.readUInt32BE(8) ^ i) >>> 0, 8)
      const opening = createDecipheriv('aes-128-gcm', key.key, nonce)
      opening.setAAD(record.subarray(0, 5)).setAuthTag(record.subarray(-16))
      const inner = Buffer.concat([opening.update(record.subarray(5, -16)), opening.final()])
      expect(inner).toEqual(Buffer.from(['x'.charCodeAt(0), applicationData]))
      expect(opened(opener, record)).toEqual(Buffer.from('x'))
    }
  })

  it('are refused when what is in them is longer than TLS allows', () => {
    const plain = Buffer.alloc(maxPlain + 1, 'x')
    const header = Buffer.from([contentTypes.applicationData, 3, 3, 0, 0])
    header.writeUInt16BE(plain.length + 1 + 16, 3)
    const sealing = createCipheriv('aes-128-gcm', key.key, key.iv).setAAD(header)
    const sealed = [sealing.update(plain), sealing.update(Buffer.from([applicationData])), sealing.final()]
    const record = Buffer.concat([header, ...sealed, sealing.getAuthTag()])
    expect(() => new RecordOpener(key).open(record)).toThrow('it is too long')
  })
})
