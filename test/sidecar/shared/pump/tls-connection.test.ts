import { createCipheriv, randomBytes } from 'node:crypto'
import koffi from 'koffi'
import { describe, expect, it } from 'vitest'
import { close, SHUT_WR, send, sendFlags, shutdown } from '../../../../sidecar/shared/pump/libc.ts'
import type { TlsContext } from '../../../../sidecar/shared/pump/openssl.ts'
import {
  BROKEN,
  ENDED,
  maxSealed,
  opened,
  sealed,
  TlsConnection,
  WANTS_READ,
} from '../../../../sidecar/shared/pump/tls-connection.ts'
import { regionOf } from '../../../../sidecar/shared/tls13/aead.ts'
import { listen } from '../../../../sidecar/shared/tls13/key-log.ts'
import { trafficKeyOf } from '../../../../sidecar/shared/tls13/record.ts'
import { contextsOf, descriptors } from '../../express/bench.ts'

const openssl = koffi.load(null)
const SSL_new = openssl.func('void *SSL_new(void *ctx)')
const SSL_free = openssl.func('void SSL_free(void *ssl)')
const SSL_set_fd = openssl.func('int SSL_set_fd(void *ssl, int fd)')
const SSL_set_connect_state = openssl.func('void SSL_set_connect_state(void *ssl)')
const SSL_do_handshake = openssl.func('int SSL_do_handshake(void *ssl)')
const SSL_read = openssl.func('int SSL_read(void *ssl, _Out_ uint8_t *buffer, int length)')
const SSL_write = openssl.func('int SSL_write(void *ssl, const uint8_t *buffer, int length)')
const SSL_shutdown = openssl.func('int SSL_shutdown(void *ssl)')
const SSL_get_shutdown = openssl.func('int SSL_get_shutdown(void *ssl)')
const SSL_key_update = openssl.func('int SSL_key_update(void *ssl, int type)')
const SSL_set_record_padding = openssl.func('int SSL_set_block_padding(void *ssl, size_t blockSize)')
const updateRequested = 1
const receivedShutdown = 2
const rounds = 10_000
const patienceMs = 10_000

/** A connection of ours, and a peer that is OpenSSL itself. */
async function pair(ours: TlsContext, theirs: TlsContext) {
  const [fd, peerFd] = await descriptors()
  const tls = new TlsConnection(ours, fd, undefined)
  const peer: unknown = SSL_new(theirs.pointer)
  SSL_set_fd(peer, peerFd)
  SSL_set_connect_state(peer)
  let secret: Uint8Array = new Uint8Array()
  for (let i = 0; i < rounds; i++) {
    const [theirs, secrets] = listen(() => SSL_do_handshake(peer))
    secret = secrets.client ?? secret
    if (theirs === 1 && tls.handshake() === 0) break
    tls.handshake()
  }
  const into = Buffer.alloc(64 * 1024)
  return {
    tls,
    peer,
    peerFd,
    /** That of the peer's records. */
    secret,
    say: (plain: Buffer) => {
      const length = tls.seal(regionOf(Buffer.concat([plain, Buffer.alloc(1)])), plain.length)
      expect(send(fd, sealed, length, sendFlags)).toBe(length)
    },
    sayEnd: () => {
      const length = tls.sealEnd()
      expect(send(fd, sealed, length, sendFlags)).toBe(length)
    },
    raw: (bytes: Buffer) => expect(send(peerFd, bytes, bytes.length, sendFlags)).toBe(bytes.length),
    /** What the peer hears, up to a length. */
    hear: (length: number): Buffer => {
      let heard = Buffer.alloc(0)
      for (let i = 0; i < rounds && heard.length < length; i++) {
        const count = Number(SSL_read(peer, into, into.length))
        if (count > 0) heard = Buffer.concat([heard, into.subarray(0, count)])
      }
      return heard
    },
    /** What we hear, up to a length, and what that came to where it was not bytes. */
    take: (length: number, most?: number): [Buffer, number] => {
      let taken = Buffer.alloc(0)
      for (const until = performance.now() + patienceMs; taken.length < length; ) {
        const count = tls.open(most)
        if (count > 0) taken = Buffer.concat([taken, opened.subarray(0, count)])
        else if (count !== WANTS_READ || performance.now() > until) return [taken, count]
      }
      return [taken, 0]
    },
    end: () => {
      tls.free()
      SSL_free(peer)
      close(fd)
      close(peerFd)
    },
  }
}

async function one() {
  const { a, b } = await contextsOf('a', 'b')
  return pair(a, b)
}

/** Records of a peer that makes its own: each a content with its type, sealed as RFC 8446 (5.2) says. */
function recordsOf(secret: Uint8Array, ...inners: Buffer[]): Buffer {
  const { key, iv } = trafficKeyOf(secret)
  const records = inners.map((inner, number) => {
    const nonce = Buffer.from(iv)
    nonce.writeUInt32BE((nonce.readUInt32BE(8) ^ number) >>> 0, 8)
    const header = Buffer.from([23, 3, 3, 0, 0])
    header.writeUInt16BE(inner.length + 16, 3)
    const sealing = createCipheriv('aes-128-gcm', key, nonce).setAAD(header)
    return Buffer.concat([header, sealing.update(inner), sealing.final(), sealing.getAuthTag()])
  })
  return Buffer.concat(records)
}

const data = (text: string) => Buffer.concat([Buffer.from(text), Buffer.from([23])])

describe('a connection to OpenSSL', () => {
  it.each([1, 2, 16_383, 16_384, 16_385, 32_768, 60 * 1024, maxSealed])(
    'is sent %i bytes',
    async (length) => {
      const { say, hear, end } = await one()
      const plain = randomBytes(length)
      say(plain)
      expect(hear(length).equals(plain)).toBe(true)
      say(plain)
      expect(hear(length).equals(plain)).toBe(true)
      end()
    },
  )

  it('brings bytes whatever they are cut into, and padded or not', async () => {
    const { peer, take, end } = await one()
    let size = 1
    for (let i = 0; i < 60; i++, size = (size * 7) % 50_021) {
      if (i === 30) expect(SSL_set_record_padding(peer, 512)).toBe(1)
      const plain = randomBytes(size)
      for (let at = 0; at < size; ) {
        const part = plain.subarray(at)
        const count = Number(SSL_write(peer, part, part.length))
        if (count > 0) at += count
      }
      expect(take(size)[0].equals(plain)).toBe(true)
    }
    end()
  })

  it('brings a few bytes where only a few are asked for, and then the others', async () => {
    const { peer, take, end } = await one()
    const plain = randomBytes(1000)
    SSL_write(peer, plain, plain.length)
    expect(take(1, 1)[0].equals(plain.subarray(0, 1))).toBe(true)
    expect(take(16, 16)[0].equals(plain.subarray(1, 17))).toBe(true)
    expect(take(983)[0].equals(plain.subarray(17))).toBe(true)
    end()
  })

  it('brings records that come a byte at a time', async () => {
    const { tls, secret, raw, end } = await one()
    const bytes = recordsOf(secret, data('hello'), data('again'))
    let heard = ''
    for (let at = 0; at < bytes.length; at++) {
      raw(bytes.subarray(at, at + 1))
      const count = tls.open()
      if (count > 0) heard += opened.toString('latin1', 0, count)
      else expect(count).toBe(WANTS_READ)
    }
    expect(heard).toBe('helloagain')
    end()
  })

  it('brings a large record that comes in small pieces, and what comes with its end', async () => {
    const { tls, secret, raw, end } = await one()
    const [large, small] = [randomBytes(16_384), Buffer.from('small')]
    const type = Buffer.from([23])
    const bytes = recordsOf(secret, Buffer.concat([large, type]), Buffer.concat([small, type]))
    const heard: Buffer[] = []
    for (let at = 0; at < bytes.length; at += 97) {
      raw(bytes.subarray(at, at + 97))
      const count = tls.open()
      if (count > 0) heard.push(Buffer.from(opened.subarray(0, count)))
      else expect(count).toBe(WANTS_READ)
    }
    expect(Buffer.concat(heard).equals(Buffer.concat([large, small]))).toBe(true)
    end()
  })

  it('leaves the bytes that it seals as they are, with the one after them', async () => {
    const { tls, end } = await one()
    const plain = randomBytes(40_001)
    const before = Buffer.from(plain)
    expect(tls.seal(regionOf(plain), 40_000)).toBeGreaterThan(40_000)
    expect(plain.equals(before)).toBe(true)
    expect(tls.seal(regionOf(plain), 40_001), 'there is no byte after them').toBe(BROKEN)
    expect(tls.seal(regionOf(Buffer.alloc(2 * maxSealed)), maxSealed + 1)).toBe(BROKEN)
    end()
  })
})

describe('an end', () => {
  it('is told to the peer after all bytes', async () => {
    const { say, sayEnd, hear, peer, end } = await one()
    say(Buffer.from('last'))
    sayEnd()
    expect(hear(4).toString()).toBe('last')
    for (let i = 0; i < rounds && SSL_get_shutdown(peer) !== receivedShutdown; i++)
      SSL_read(peer, Buffer.alloc(1), 1)
    expect(SSL_get_shutdown(peer)).toBe(receivedShutdown)
    end()
  })

  it('of the peer is one after all bytes, each time that it is asked', async () => {
    const { peer, take, tls, end } = await one()
    SSL_write(peer, Buffer.from('last'), 4)
    SSL_shutdown(peer)
    expect(take(5)).toEqual([Buffer.from('last'), ENDED])
    expect(tls.open()).toBe(ENDED)
    end()
  })

  it('of the socket alone is none: anyone could make it', async () => {
    const { peer, peerFd, take, end } = await one()
    SSL_write(peer, Buffer.from('last'), 4)
    shutdown(peerFd, SHUT_WR)
    expect(take(5)).toEqual([Buffer.from('last'), BROKEN])
    end()
  })
})

describe('a peer breaks it', () => {
  it('with any bit of a record, after what came before it', async () => {
    const { secret, ...first } = await one()
    first.end()
    const length =
      recordsOf(secret, data('good'), data('bad')).length - recordsOf(secret, data('good')).length
    for (let bit = 0; bit < 8 * length; bit += 5) {
      const { secret, raw, take, tls, end } = await one()
      const good = recordsOf(secret, data('good')).length
      const bytes = recordsOf(secret, data('good'), data('bad'))
      const at = good + (bit >> 3)
      bytes[at] = (bytes[at] ?? 0) ^ (1 << (bit & 7))
      // A length that became longer waits for more.
      raw(Buffer.concat([bytes, Buffer.alloc(20_000)]))
      expect(take(5), `bit ${bit}`).toEqual([Buffer.from('good'), BROKEN])
      expect(tls.open()).toBe(BROKEN)
      end()
    }
  })

  it.each([
    ['a record of no type', [Buffer.alloc(10)]],
    ['a record of an unknown type', [Buffer.from([1, 99])]],
    ['a handshake message', [Buffer.from([24, 0, 0, 1, 0, 22])]],
    ['another alert', [Buffer.from([2, 40, 21])]],
    ['more than a record may hold', [Buffer.concat([Buffer.alloc(16_385, 'x'), Buffer.from([23])])]],
    ['nothing, again and again', Array.from({ length: 33 }, () => Buffer.from([23]))],
  ])('with %s', async (_what, inners) => {
    const { secret, raw, take, tls, end } = await one()
    raw(recordsOf(secret, ...inners, data('more')))
    expect(take(1)).toEqual([Buffer.alloc(0), BROKEN])
    expect(tls.open()).toBe(BROKEN)
    end()
  })

  it('with an alert, and says which', async () => {
    const { secret, raw, take, tls, end } = await one()
    raw(recordsOf(secret, Buffer.from([2, 48, 21])))
    expect([take(1)[1], tls.failure()]).toEqual([BROKEN, 'the peer says: unknown CA'])
    end()
  })

  it('not with nothing now and then', async () => {
    const { secret, raw, take, end } = await one()
    const nothing = Array.from({ length: 32 }, () => Buffer.from([23]))
    raw(recordsOf(secret, ...nothing, data('a'), ...nothing, data('b')))
    expect(take(2)[0].toString()).toBe('ab')
    end()
  })

  it('with a record that comes again', async () => {
    const { secret, raw, take, end } = await one()
    const record = recordsOf(secret, data('once'))
    raw(Buffer.concat([record, record]))
    expect(take(8)).toEqual([Buffer.from('once'), BROKEN])
    end()
  })
})

it('a peer that asks for new keys, one that sends no records, and one that is freed after it has sealed are nothing to others', async () => {
  const { a, b } = await contextsOf('a', 'b')
  const [asking, broken, freed, other] = [
    await pair(a, b),
    await pair(a, b),
    await pair(a, b),
    await pair(a, b),
  ]
  const batch = Buffer.alloc(60 * 1024, 'x')
  for (const { say } of [asking, broken, freed, other]) say(batch)
  expect(other.tls.open()).toBe(WANTS_READ)
  expect([SSL_key_update(asking.peer, updateRequested), SSL_do_handshake(asking.peer)]).toEqual([1, 1])
  expect(asking.take(1)[1]).toBe(BROKEN)
  broken.raw(Buffer.alloc(1024, 'no record'))
  expect(broken.take(1)[1]).toBe(BROKEN)
  freed.say(batch)
  freed.tls.free()
  expect([freed.tls.open(), freed.tls.seal(regionOf(batch), 1), freed.tls.sealEnd()]).toEqual([
    BROKEN,
    BROKEN,
    BROKEN,
  ])
  for (const { end } of [asking, broken, freed]) end()
  other.say(batch)
  expect(other.hear(2 * batch.length).equals(Buffer.concat([batch, batch]))).toBe(true)
  expect(other.tls.open()).toBe(WANTS_READ)
  other.end()
})
