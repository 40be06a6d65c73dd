import koffi from 'koffi'
import { expect, it } from 'vitest'
import { close, send, sendFlags } from '../../../../sidecar/shared/pump/libc.ts'
import {
  BROKEN,
  sealed,
  TlsConnection,
  type TlsContext,
  WANTS_READ,
} from '../../../../sidecar/shared/pump/openssl.ts'
import { contextsOf, descriptors } from '../../express/bench.ts'

const openssl = koffi.load(null)
const SSL_new = openssl.func('void *SSL_new(void *ctx)')
const SSL_free = openssl.func('void SSL_free(void *ssl)')
const SSL_set_fd = openssl.func('int SSL_set_fd(void *ssl, int fd)')
const SSL_set_connect_state = openssl.func('void SSL_set_connect_state(void *ssl)')
const SSL_do_handshake = openssl.func('int SSL_do_handshake(void *ssl)')
const SSL_read = openssl.func('int SSL_read(void *ssl, _Out_ uint8_t *buffer, int length)')
const SSL_key_update = openssl.func('int SSL_key_update(void *ssl, int type)')
const updateRequested = 1

/** A connection of ours, and a peer that can do more than ours would. */
async function pair(ours: TlsContext, theirs: TlsContext) {
  const [fd, peerFd] = await descriptors()
  const tls = new TlsConnection(ours, fd, undefined)
  const peer: unknown = SSL_new(theirs.pointer)
  SSL_set_fd(peer, peerFd)
  SSL_set_connect_state(peer)
  for (let i = 0; i < 10_000; i++) {
    const both = [SSL_do_handshake(peer), tls.handshake()]
    if (both[0] === 1 && both[1] === 0) break
  }
  const into = Buffer.alloc(64 * 1024)
  return {
    tls,
    say: (plain: Buffer) => {
      const length = tls.seal(plain)
      expect(send(fd, sealed, length, sendFlags)).toBe(length)
    },
    breakIt: () => send(peerFd, Buffer.alloc(1024, 'no record'), 1024, sendFlags),
    askForKeys: () => {
      expect([SSL_key_update(peer, updateRequested), SSL_do_handshake(peer)]).toEqual([1, 1])
    },
    hear: (length: number): Buffer => {
      let heard = Buffer.alloc(0)
      for (let i = 0; i < 10_000 && heard.length < length; i++) {
        const count = Number(SSL_read(peer, into, into.length))
        if (count > 0) heard = Buffer.concat([heard, into.subarray(0, count)])
      }
      return heard
    },
    end: () => {
      tls.free()
      SSL_free(peer)
      close(fd)
      close(peerFd)
    },
  }
}

it('a peer that asks for new keys gets them, and no other connection any byte of the answer', async () => {
  const { a, b } = await contextsOf('a', 'b')
  const asking = await pair(a, b)
  const other = await pair(a, b)
  const batch = Buffer.alloc(60 * 1024, 'x')
  for (let i = 0; i < 3; i++) {
    asking.askForKeys()
    expect(asking.tls.read(Buffer.alloc(1024))).toBeLessThan(0)
    asking.say(batch)
    other.say(batch)
    expect(other.hear(batch.length).equals(batch)).toBe(true)
    expect(asking.hear(batch.length).equals(batch)).toBe(true)
  }
  asking.end()
  other.end()
})

it('a connection that breaks, or is freed after it has sealed, is nothing to the others', async () => {
  const { a, b } = await contextsOf('a', 'b')
  const [broken, freed, other] = [await pair(a, b), await pair(a, b), await pair(a, b)]
  const batch = Buffer.alloc(60 * 1024, 'x')
  const into = Buffer.alloc(1024)
  for (const { say } of [broken, freed, other]) say(batch)
  expect(other.tls.read(into)).toBe(WANTS_READ)
  broken.breakIt()
  expect(broken.tls.read(into)).toBe(BROKEN)
  expect(other.tls.read(into), 'its error is no longer there').toBe(WANTS_READ)
  freed.say(batch)
  for (const { end } of [broken, freed]) end()
  other.say(batch)
  expect(other.hear(2 * batch.length).equals(Buffer.concat([batch, batch]))).toBe(true)
  expect(other.tls.read(into)).toBe(WANTS_READ)
  other.end()
})
