import koffi from 'koffi'
import { EdgeMeshError } from '#shared/errors.ts'
import { listen, type Secrets, tellSecrets } from '#shared/tls13/key-log.ts'
import { cipherSuite } from '#shared/tls13/record.ts'
import type { ServerIdentity } from './messages.ts'

/** Node's own OpenSSL; see #shared/pump/openssl.ts. */
const openssl = koffi.load(null)
type Pointer = unknown

const SSL_CTX_new = openssl.func('void *SSL_CTX_new(void *method)')
const TLS_server_method = openssl.func('void *TLS_server_method()')
const SSL_CTX_free = openssl.func('void SSL_CTX_free(void *ctx)')
const SSL_CTX_ctrl = openssl.func(
  'int64_t SSL_CTX_ctrl(void *ctx, int command, int64_t number, const char *text)',
)
const SSL_CTX_set_ciphersuites = openssl.func('int SSL_CTX_set_ciphersuites(void *ctx, const char *list)')
const SSL_CTX_set_num_tickets = openssl.func('int SSL_CTX_set_num_tickets(void *ctx, size_t number)')
const SSL_CTX_use_certificate = openssl.func('int SSL_CTX_use_certificate(void *ctx, void *certificate)')
const SSL_CTX_use_PrivateKey = openssl.func('int SSL_CTX_use_PrivateKey(void *ctx, void *key)')
const SSL_CTX_set_verify = openssl.func('void SSL_CTX_set_verify(void *ctx, int mode, void *callback)')
const SSL_CTX_get_cert_store = openssl.func('void *SSL_CTX_get_cert_store(void *ctx)')
const X509_STORE_add_cert = openssl.func('int X509_STORE_add_cert(void *store, void *certificate)')
const BIO_new_mem_buf = openssl.func('void *BIO_new_mem_buf(const uint8_t *bytes, int length)')
const BIO_new = openssl.func('void *BIO_new(void *method)')
const BIO_s_mem = openssl.func('void *BIO_s_mem()')
const BIO_free = openssl.func('int BIO_free(void *bio)')
const BIO_read = openssl.func('int BIO_read(void *bio, _Out_ uint8_t *buffer, int length)')
const BIO_write = openssl.func('int BIO_write(void *bio, const uint8_t *bytes, int length)')
const BIO_ctrl_pending = openssl.func('size_t BIO_ctrl_pending(void *bio)')
const PEM_read_bio_X509 = openssl.func(
  'void *PEM_read_bio_X509(void *bio, void *into, void *callback, void *argument)',
)
const PEM_read_bio_PrivateKey = openssl.func(
  'void *PEM_read_bio_PrivateKey(void *bio, void *into, void *callback, void *argument)',
)
const SSL_get1_peer_certificate = openssl.func('void *SSL_get1_peer_certificate(void *ssl)')
const SSL_get_verify_result = openssl.func('int64_t SSL_get_verify_result(void *ssl)')
const i2d_X509_bio = openssl.func('int i2d_X509_bio(void *bio, void *certificate)')
const X509_free = openssl.func('void X509_free(void *certificate)')
const EVP_PKEY_free = openssl.func('void EVP_PKEY_free(void *key)')
const SSL_new = openssl.func('void *SSL_new(void *ctx)')
const SSL_free = openssl.func('void SSL_free(void *ssl)')
const SSL_set_bio = openssl.func('void SSL_set_bio(void *ssl, void *read, void *write)')
const SSL_set_accept_state = openssl.func('void SSL_set_accept_state(void *ssl)')
const SSL_do_handshake = openssl.func('int SSL_do_handshake(void *ssl)')
const SSL_get_error = openssl.func('int SSL_get_error(void *ssl, int result)')
const SSL_has_pending = openssl.func('int SSL_has_pending(void *ssl)')
const ERR_clear_error = openssl.func('void ERR_clear_error()')
const ERR_peek_last_error = openssl.func('uint64_t ERR_peek_last_error()')
const ERR_reason_error_string = openssl.func('const char *ERR_reason_error_string(uint64_t code)')

// openssl/ssl.h
const setSessionCacheMode = 44
const setMinProtocol = 123
const setMaxProtocol = 124
const tls13 = 0x0304
const errorWantRead = 2
const verifyPeer = 1
const verified = 0 // X509_V_OK
const setMode = 33
const modeNoAutoChain = 8
const maxRoots = 100

/** What the handshakes of one server certificate share. */
export class ServerContext {
  readonly pointer: Pointer

  /** `bad-config` where OpenSSL refuses the certificate. */
  constructor({ key, certificate: pem, roots }: ServerIdentity) {
    const ctx = SSL_CTX_new(TLS_server_method())
    this.pointer = ctx
    ERR_clear_error()
    SSL_CTX_ctrl(ctx, setMinProtocol, tls13, null)
    SSL_CTX_ctrl(ctx, setMaxProtocol, tls13, null)
    SSL_CTX_ctrl(ctx, setSessionCacheMode, 0, null)
    SSL_CTX_set_num_tickets(ctx, 0) // and so the handshake is all that is ever sent without us
    SSL_CTX_ctrl(ctx, setMode, modeNoAutoChain, null) // the roots below are not for clients to see
    tellSecrets(ctx)
    // Other replicas show a certificate, pods none. With one that our roots do not verify the handshake fails.
    SSL_CTX_set_verify(ctx, verifyPeer, null)
    const certificate = withBio(pem, (bio) => PEM_read_bio_X509(bio, null, null, null))
    const privateKey = withBio(key, (bio) => PEM_read_bio_PrivateKey(bio, null, null, null))
    const works =
      SSL_CTX_set_ciphersuites(ctx, cipherSuite) === 1 &&
      SSL_CTX_use_certificate(ctx, certificate) === 1 &&
      SSL_CTX_use_PrivateKey(ctx, privateKey) === 1 &&
      trust(ctx, roots)
    X509_free(certificate)
    EVP_PKEY_free(privateKey)
    if (works) return
    const why = lastError()
    this.free()
    throw new EdgeMeshError('bad-config', `Cannot use the certificate of the server: ${why}.`)
  }

  /** Handshakes that are under way keep what they need. */
  free(): void {
    SSL_CTX_free(this.pointer)
  }
}

/** False where there is no root in the PEM, or OpenSSL refuses one. */
function trust(ctx: Pointer, roots: string): boolean {
  const store = SSL_CTX_get_cert_store(ctx)
  return withBio(roots, (bio) => {
    let taken = 0
    for (; taken < maxRoots; taken++) {
      const root = PEM_read_bio_X509(bio, null, null, null)
      if (root === null) break
      const works = X509_STORE_add_cert(store, root) === 1
      X509_free(root)
      if (!works) return false
    }
    return taken > 0
  })
}

/** The server's side of one TLS handshake, bytes in and bytes out. */
export class ServerHandshake {
  readonly #ssl: Pointer
  readonly #in = BIO_new(BIO_s_mem())
  readonly #out = BIO_new(BIO_s_mem())
  #secrets: Partial<Secrets> = {}

  constructor(context: ServerContext) {
    this.#ssl = SSL_new(context.pointer)
    SSL_set_bio(this.#ssl, this.#in, this.#out) // they are freed with it
    SSL_set_accept_state(this.#ssl)
  }

  /** Takes bytes of the client, as far as they are of the handshake. Throws with the reason when it fails. */
  take(bytes: Uint8Array): 'waiting' | 'done' {
    BIO_write(this.#in, bytes, bytes.length)
    ERR_clear_error()
    const [result, secrets] = listen(() => SSL_do_handshake(this.#ssl) as number)
    this.#secrets = { ...this.#secrets, ...secrets }
    if (result === 1) return 'done'
    if (SSL_get_error(this.#ssl, result) === errorWantRead) return 'waiting'
    throw new Error(lastError())
  }

  /** What is to be sent to the client. */
  answer(): Buffer {
    return readAll(this.#out)
  }

  /** After `done`: what protects the connection from now on, and what has come under it already. */
  result(): Secrets & { early: Buffer; certificate: Buffer | undefined } {
    const { client, server } = this.#secrets
    if (client === undefined || server === undefined || SSL_has_pending(this.#ssl) !== 0)
      throw new Error('it ended without its secrets')
    const certificate = this.#certificate()
    return { client, server, early: readAll(this.#in), certificate }
  }

  /** The client's, DER. OpenSSL has verified it, or the handshake would have failed; we look again. */
  #certificate(): Buffer | undefined {
    const certificate = SSL_get1_peer_certificate(this.#ssl)
    if (certificate === null) return undefined
    const der = BIO_new(BIO_s_mem())
    try {
      const works = i2d_X509_bio(der, certificate) === 1
      if (!works || Number(SSL_get_verify_result(this.#ssl)) !== verified)
        throw new Error('the certificate of the client is not verified')
      return readAll(der)
    } finally {
      BIO_free(der)
      X509_free(certificate)
    }
  }

  free(): void {
    SSL_free(this.#ssl)
  }
}

function readAll(bio: Pointer): Buffer {
  const bytes = Buffer.alloc(Number(BIO_ctrl_pending(bio)))
  if (bytes.length > 0) BIO_read(bio, bytes, bytes.length)
  return bytes
}

function withBio<T>(pem: string, use: (bio: Pointer) => T): T {
  const bytes = Buffer.from(pem)
  const bio = BIO_new_mem_buf(bytes, bytes.length) // reads where the bytes are, so they must outlive it
  try {
    return use(bio)
  } finally {
    BIO_free(bio)
  }
}

function lastError(): string {
  return String(ERR_reason_error_string(ERR_peek_last_error()) ?? 'the connection broke')
}
