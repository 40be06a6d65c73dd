import koffi from 'koffi'
import { EdgeMeshError } from '../errors.ts'
import { packetBytes } from './libc.ts'

/** Node's own OpenSSL: Node exports it for addons, so nothing is shipped twice. */
const openssl = koffi.load(null)
type Pointer = unknown

const SSL_CTX_new = openssl.func('void *SSL_CTX_new(void *method)')
const TLS_method = openssl.func('void *TLS_method()')
const SSL_CTX_free = openssl.func('void SSL_CTX_free(void *ctx)')
const SSL_CTX_ctrl = openssl.func(
  'int64_t SSL_CTX_ctrl(void *ctx, int command, int64_t number, void *pointer)',
)
const SSL_CTX_set_verify = openssl.func('void SSL_CTX_set_verify(void *ctx, int mode, void *callback)')
const SSL_CTX_set_ciphersuites = openssl.func('int SSL_CTX_set_ciphersuites(void *ctx, const char *list)')
const SSL_CTX_set_num_tickets = openssl.func('int SSL_CTX_set_num_tickets(void *ctx, size_t number)')
const SSL_CTX_set_default_read_buffer_len = openssl.func(
  'void SSL_CTX_set_default_read_buffer_len(void *ctx, size_t length)',
)
const SSL_CTX_use_certificate = openssl.func('int SSL_CTX_use_certificate(void *ctx, void *certificate)')
const SSL_CTX_use_PrivateKey = openssl.func('int SSL_CTX_use_PrivateKey(void *ctx, void *key)')
const SSL_CTX_get_cert_store = openssl.func('void *SSL_CTX_get_cert_store(void *ctx)')
const X509_STORE_add_cert = openssl.func('int X509_STORE_add_cert(void *store, void *certificate)')
const BIO_new_mem_buf = openssl.func('void *BIO_new_mem_buf(const uint8_t *bytes, int length)')
const BIO_free = openssl.func('int BIO_free(void *bio)')
const PEM_read_bio_X509 = openssl.func(
  'void *PEM_read_bio_X509(void *bio, void *into, void *callback, void *argument)',
)
const PEM_read_bio_PrivateKey = openssl.func(
  'void *PEM_read_bio_PrivateKey(void *bio, void *into, void *callback, void *argument)',
)
const X509_free = openssl.func('void X509_free(void *certificate)')
const EVP_PKEY_free = openssl.func('void EVP_PKEY_free(void *key)')
const SSL_new = openssl.func('void *SSL_new(void *ctx)')
const SSL_free = openssl.func('void SSL_free(void *ssl)')
const SSL_set_fd = openssl.func('int SSL_set_fd(void *ssl, int fd)')
const SSL_set1_host = openssl.func('int SSL_set1_host(void *ssl, const char *name)')
const SSL_ctrl = openssl.func('int64_t SSL_ctrl(void *ssl, int command, int64_t number, const char *text)')
const SSL_set_connect_state = openssl.func('void SSL_set_connect_state(void *ssl)')
const SSL_set_accept_state = openssl.func('void SSL_set_accept_state(void *ssl)')
const SSL_do_handshake = openssl.func('int SSL_do_handshake(void *ssl)')
const SSL_read = openssl.func('int SSL_read(void *ssl, _Out_ uint8_t *buffer, int length)')
const SSL_write = openssl.func('int SSL_write(void *ssl, const uint8_t *buffer, int length)')
const SSL_shutdown = openssl.func('int SSL_shutdown(void *ssl)')
const SSL_get_error = openssl.func('int SSL_get_error(void *ssl, int result)')
const SSL_get1_peer_certificate = openssl.func('void *SSL_get1_peer_certificate(void *ssl)')
const SSL_get_verify_result = openssl.func('int64_t SSL_get_verify_result(void *ssl)')
const X509_verify_cert_error_string = openssl.func('const char *X509_verify_cert_error_string(int64_t code)')
const i2d_X509 = openssl.func('int i2d_X509(void *certificate, void *into)')
const i2d_X509_bio = openssl.func('int i2d_X509_bio(void *bio, void *certificate)')
const BIO_new = openssl.func('void *BIO_new(void *method)')
const BIO_s_mem = openssl.func('void *BIO_s_mem()')
const BIO_up_ref = openssl.func('int BIO_up_ref(void *bio)')
const SSL_get_wbio = openssl.func('void *SSL_get_wbio(void *ssl)')
const SSL_set0_wbio = openssl.func('void SSL_set0_wbio(void *ssl, void *bio)')
const BIO_read = openssl.func('int BIO_read(void *bio, _Out_ uint8_t *buffer, int length)')
const BIO_write = openssl.func('int BIO_write(void *bio, const uint8_t *buffer, int length)')
const BIO_new_bio_pair = openssl.func(
  'int BIO_new_bio_pair(_Out_ void **one, size_t oneBytes, _Out_ void **other, size_t otherBytes)',
)
const BIO_nread = openssl.func('int BIO_nread(void *bio, _Out_ uint8_t *pointer, int length)')
const ERR_clear_error = openssl.func('void ERR_clear_error()')
const ERR_peek_last_error = openssl.func('uint64_t ERR_peek_last_error()')
const ERR_reason_error_string = openssl.func('const char *ERR_reason_error_string(uint64_t code)')

// openssl/ssl.h
const setMode = 33
const setSessionCacheMode = 44
const setReadAhead = 41
const setMinProtocol = 123
const setMaxProtocol = 124
const setServerName = 55
const modeMovingBuffer = 0x2
const modeReleaseBuffers = 0x10
const tls13 = 0x0304
const verifyPeer = 0x1 | 0x2 // and fail where it shows no certificate
const errorWantRead = 2
const errorWantWrite = 3
const errorZeroReturn = 6
/** What a record holds at the most; `TlsConnection.read` returns what is left of one. */
export const recordBytes = 16 * 1024
const recordOverhead = 22
/** OpenSSL begins to read there, so that what follows a record's header is aligned. */
const readOffset = 3
/**
 * Of encrypted bytes read at once, per connection and while it has some: as many as are sent at once. With more, a part of
 * the next packet's first record would be read and have to be moved.
 */
const readBufferBytes = readOffset + sealedBytes(packetBytes)
/** AES-128 first: as safe for this as AES-256, and a third faster. Both ends are ours, so there is no one to please. */
const cipherSuites = 'TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256'
const maxCertificates = 32

export interface TlsIdentity {
  /** PEM. */
  key: string
  /** PEM, the leaf first. */
  chain: string
  /** PEM, the roots that peers are verified with. */
  trustBundle: string
}

/** What TLS connections of one identity share. Verification is as for every other tunnel: TLS 1.3, both sides. */
export class TlsContext {
  readonly pointer: Pointer

  /** `bad-config` where OpenSSL refuses the identity. */
  constructor({ key, chain, trustBundle }: TlsIdentity) {
    const ctx = SSL_CTX_new(TLS_method())
    this.pointer = ctx
    ERR_clear_error()
    SSL_CTX_ctrl(ctx, setMinProtocol, tls13, null)
    SSL_CTX_ctrl(ctx, setMaxProtocol, tls13, null)
    SSL_CTX_ctrl(ctx, setMode, modeMovingBuffer | modeReleaseBuffers, null)
    SSL_CTX_ctrl(ctx, setSessionCacheMode, 0, null)
    SSL_CTX_ctrl(ctx, setReadAhead, 1, null)
    SSL_CTX_set_default_read_buffer_len(ctx, readBufferBytes)
    SSL_CTX_set_num_tickets(ctx, 0) // a resumed session would skip the check of the certificate
    SSL_CTX_set_verify(ctx, verifyPeer, null)
    const store = SSL_CTX_get_cert_store(ctx)
    const roots = certificatesOf(trustBundle)
    for (const root of roots) X509_STORE_add_cert(store, root)
    const [leaf, ...intermediates] = certificatesOf(chain)
    const privateKey = withBio(key, (bio) => PEM_read_bio_PrivateKey(bio, null, null, null))
    const works =
      SSL_CTX_set_ciphersuites(ctx, cipherSuites) === 1 &&
      roots.length > 0 &&
      intermediates.length === 0 && // the mesh's server signs leaves directly
      SSL_CTX_use_certificate(ctx, leaf ?? null) === 1 &&
      SSL_CTX_use_PrivateKey(ctx, privateKey) === 1
    for (const certificate of [...roots, leaf, ...intermediates]) X509_free(certificate ?? null)
    EVP_PKEY_free(privateKey)
    if (works) return
    const why = lastError()
    this.free()
    throw new EdgeMeshError('bad-config', `Cannot use the certificate for bulk connections: ${why}.`)
  }

  /** Connections that are open keep what they need. */
  free(): void {
    SSL_CTX_free(this.pointer)
  }
}

/** What an operation came to: bytes (0 or more), or why there are none now. */
export const WANTS_READ = -1
export const WANTS_WRITE = -2
/** The peer's close_notify: a clean end of its direction. */
export const ENDED = -3
export const BROKEN = -4

/** For what OpenSSL says of its own before what it is given: an answer to a peer that asks for new keys, say. */
const ownWordsBytes = 512
/** What is sealed at once at most, in bytes. */
const maxSealed = 64 * 1024
const batchBytes = sealedBytes(maxSealed) + ownWordsBytes

/**
 * Where records of all connections are put together: what is written to one BIO of a pair is read from the other, where it is
 * (a memory BIO would clear the place before, and have it copied out). Empty it begins at its beginning, so a batch that is
 * taken whole is always in one piece, and in the same place.
 */
const [batch, batchEnd] = bioPair(batchBytes)
const place = Buffer.alloc(8)
/** What `TlsConnection.seal` has put together last, for all connections of this thread. */
export const sealed = placeOf(batch, batchEnd, batchBytes)

function bioPair(bytes: number): [Pointer, Pointer] {
  const [one, other] = [[null], [null]] as [Pointer[], Pointer[]]
  if (BIO_new_bio_pair(one, bytes, other, 1) !== 1)
    throw new EdgeMeshError('limit', 'Cannot encrypt: no memory.')
  return [one[0], other[0]]
}

function placeOf(into: Pointer, outOf: Pointer, bytes: number): Buffer {
  BIO_write(into, Buffer.alloc(1), 1)
  BIO_nread(outOf, place, 1)
  return Buffer.from(koffi.view(place.readBigUInt64LE(), bytes))
}

/** How long `length` bytes are once they are sealed. */
function sealedBytes(length: number): number {
  return length + Math.ceil(length / recordBytes) * recordOverhead
}

/**
 * Whether this thread's queue of errors may hold some: a stale one would be taken for one of the connection that is at it. What
 * succeeds leaves none, and each look costs as much as a small read.
 */
let mayHoldErrors = true

function forgetErrors(): void {
  if (mayHoldErrors) ERR_clear_error()
  mayHoldErrors = false
}

/** One TLS connection over a non-blocking socket, which stays the caller's. */
export class TlsConnection {
  readonly #ssl: Pointer
  readonly #toSocket: Pointer
  /** What it writes goes into `batch`, else to the socket. */
  #isBatched = false
  #open = true

  /** As client the peer's certificate must carry `serverName`; as server (undefined) any of the mesh is taken. */
  constructor(context: TlsContext, fd: number, serverName: string | undefined) {
    mayHoldErrors = true
    this.#ssl = SSL_new(context.pointer)
    SSL_set_fd(this.#ssl, fd)
    this.#toSocket = SSL_get_wbio(this.#ssl)
    if (serverName === undefined) SSL_set_accept_state(this.#ssl)
    else {
      SSL_ctrl(this.#ssl, setServerName, 0, serverName)
      SSL_set1_host(this.#ssl, serverName)
      SSL_set_connect_state(this.#ssl)
    }
  }

  /** 0 when it is done. */
  handshake(): number {
    ERR_clear_error()
    mayHoldErrors = true // of certificates that were looked at
    const result = SSL_do_handshake(this.#ssl) as number
    return result === 1 ? 0 : this.#outcome(result)
  }

  read(buffer: Buffer): number {
    forgetErrors()
    this.#writeTo(false) // answers that the peer wants, and alerts
    const count = SSL_read(this.#ssl, buffer, buffer.length) as number
    return count > 0 ? count : this.#outcome(count)
  }

  /** Takes all of it. After WANTS_* the same bytes must be offered again. */
  write(buffer: Buffer, length: number): number {
    forgetErrors()
    this.#writeTo(false)
    const count = SSL_write(this.#ssl, buffer, length) as number
    return count > 0 ? count : this.#outcome(count)
  }

  /**
   * Encrypts all of it, 64 KiB at most, into `sealed` instead of onto the socket, and returns the length: OpenSSL
   * writes each record of 16 KiB by itself, and a write of 128 KiB costs little more than one of 16. Negative when it cannot.
   */
  seal(plain: Buffer): number {
    forgetErrors()
    this.#writeTo(true)
    let count = SSL_write(this.#ssl, plain, plain.length) as number
    if (count <= 0) count = this.#outcome(count)
    const length = BIO_nread(batchEnd, place, sealed.length) as number
    if (count < 0) return count
    return length < sealed.length ? length : BROKEN // it may not have had room for all
  }

  /** Ends our direction with close_notify; 0 when it is sent. */
  end(): number {
    forgetErrors()
    this.#writeTo(false)
    const result = SSL_shutdown(this.#ssl) as number
    return result >= 0 ? 0 : this.#outcome(result)
  }

  /** The peer's certificate, DER. */
  peerCertificate(): Buffer {
    mayHoldErrors = true
    const certificate = SSL_get1_peer_certificate(this.#ssl)
    if (certificate === null) return Buffer.alloc(0)
    const bio = BIO_new(BIO_s_mem())
    i2d_X509_bio(bio, certificate)
    const der = Buffer.alloc(i2d_X509(certificate, null) as number)
    BIO_read(bio, der, der.length)
    BIO_free(bio)
    X509_free(certificate)
    return der
  }

  /** Why a handshake failed. */
  failure(): string {
    const verdict = SSL_get_verify_result(this.#ssl) as number
    return verdict === 0 ? lastError() : String(X509_verify_cert_error_string(verdict))
  }

  free(): void {
    if (this.#open) SSL_free(this.#ssl)
    this.#open = false
  }

  #writeTo(isBatched: boolean): void {
    if (isBatched === this.#isBatched) return
    const bio = isBatched ? batch : this.#toSocket
    BIO_up_ref(bio)
    SSL_set0_wbio(this.#ssl, bio)
    this.#isBatched = isBatched
  }

  #outcome(result: number): number {
    switch (SSL_get_error(this.#ssl, result)) {
      case errorWantRead:
        return WANTS_READ
      case errorWantWrite:
        return WANTS_WRITE
      case errorZeroReturn:
        return ENDED
      default:
        mayHoldErrors = true
        return BROKEN
    }
  }
}

function withBio<T>(pem: string, use: (bio: Pointer) => T): T {
  mayHoldErrors = true
  const bytes = Buffer.from(pem)
  const bio = BIO_new_mem_buf(bytes, bytes.length) // reads where the bytes are, so they must outlive it
  try {
    return use(bio)
  } finally {
    BIO_free(bio)
  }
}

function certificatesOf(pem: string): Pointer[] {
  const found = withBio(pem, (bio) => {
    const all: Pointer[] = []
    for (let i = 0; i < maxCertificates; i++) {
      const certificate = PEM_read_bio_X509(bio, null, null, null)
      if (certificate === null) break
      all.push(certificate)
    }
    return all
  })
  ERR_clear_error() // the end of the text is an error to OpenSSL
  return found
}

function lastError(): string {
  const code = ERR_peek_last_error()
  return String(ERR_reason_error_string(code) ?? 'the connection broke')
}
