import koffi from 'koffi'
import { EdgeMeshError } from '../errors.ts'
import { listen, type Secrets, tellSecrets } from '../tls13/key-log.ts'
import { cipherSuite, type TrafficKey, trafficKeyOf } from '../tls13/record.ts'

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
const SSL_get_error = openssl.func('int SSL_get_error(void *ssl, int result)')
const SSL_has_pending = openssl.func('int SSL_has_pending(void *ssl)')
const SSL_get1_peer_certificate = openssl.func('void *SSL_get1_peer_certificate(void *ssl)')
const SSL_get_verify_result = openssl.func('int64_t SSL_get_verify_result(void *ssl)')
const X509_verify_cert_error_string = openssl.func('const char *X509_verify_cert_error_string(int64_t code)')
const SSL_alert_desc_string_long = openssl.func('const char *SSL_alert_desc_string_long(int value)')
const i2d_X509 = openssl.func('int i2d_X509(void *certificate, void *into)')
const i2d_X509_bio = openssl.func('int i2d_X509_bio(void *bio, void *certificate)')
const BIO_new = openssl.func('void *BIO_new(void *method)')
const BIO_s_mem = openssl.func('void *BIO_s_mem()')
const BIO_read = openssl.func('int BIO_read(void *bio, _Out_ uint8_t *buffer, int length)')
const ERR_clear_error = openssl.func('void ERR_clear_error()')
const ERR_peek_last_error = openssl.func('uint64_t ERR_peek_last_error()')
const ERR_reason_error_string = openssl.func('const char *ERR_reason_error_string(uint64_t code)')

// openssl/ssl.h
const setSessionCacheMode = 44
const setMinProtocol = 123
const setMaxProtocol = 124
const setServerName = 55
const tls13 = 0x0304
const verifyPeer = 0x1 | 0x2 // and fail where it shows no certificate
const errorWantRead = 2
const errorWantWrite = 3
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
    SSL_CTX_ctrl(ctx, setSessionCacheMode, 0, null)
    SSL_CTX_set_num_tickets(ctx, 0) // a resumed session would skip the check of the certificate
    SSL_CTX_set_verify(ctx, verifyPeer, null)
    tellSecrets(ctx)
    const store = SSL_CTX_get_cert_store(ctx)
    const roots = certificatesOf(trustBundle)
    for (const root of roots) X509_STORE_add_cert(store, root)
    const [leaf, ...intermediates] = certificatesOf(chain)
    const privateKey = withBio(key, (bio) => PEM_read_bio_PrivateKey(bio, null, null, null))
    const works =
      SSL_CTX_set_ciphersuites(ctx, cipherSuite) === 1 &&
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

/** What is not done yet, and what it waits for. */
export const WANTS_READ = -1
export const WANTS_WRITE = -2
const FAILED = -4

/** What protects a connection from now on, and who is at its other end (DER). */
export interface Established {
  read: TrafficKey
  write: TrafficKey
  certificate: Buffer
}

/** The handshake of one TLS connection over a non-blocking socket, which stays the caller's. */
export class TlsHandshake {
  readonly #ssl: Pointer
  readonly #isClient: boolean
  #secrets: Partial<Secrets> = {}
  #open = true

  /** As client the peer's certificate must carry `serverName`; as server (undefined) any of the mesh is taken. */
  constructor(context: TlsContext, fd: number, serverName: string | undefined) {
    this.#isClient = serverName !== undefined
    this.#ssl = SSL_new(context.pointer)
    SSL_set_fd(this.#ssl, fd)
    if (serverName === undefined) SSL_set_accept_state(this.#ssl)
    else {
      SSL_ctrl(this.#ssl, setServerName, 0, serverName)
      SSL_set1_host(this.#ssl, serverName)
      SSL_set_connect_state(this.#ssl)
    }
  }

  /** 0 when it is done, else what it waits for; any other number when it failed. */
  take(): number {
    ERR_clear_error() // a stale one of another connection would be taken for one of this
    const [result, secrets] = listen(() => SSL_do_handshake(this.#ssl) as number)
    this.#secrets = { ...this.#secrets, ...secrets }
    if (result === 1) return 0
    const why = SSL_get_error(this.#ssl, result)
    if (why === errorWantRead) return WANTS_READ
    return why === errorWantWrite ? WANTS_WRITE : FAILED
  }

  /** Once it is done; undefined where it has not left what it must. What comes next is in the socket: nothing was read ahead. */
  result(): Established | undefined {
    const { client, server } = this.#secrets
    const certificate = this.#certificate()
    if (client === undefined || server === undefined || certificate === undefined) return undefined
    if (SSL_has_pending(this.#ssl) !== 0) return undefined
    const [read, write] = this.#isClient ? [server, client] : [client, server]
    return { read: trafficKeyOf(read), write: trafficKeyOf(write), certificate }
  }

  #certificate(): Buffer | undefined {
    const certificate = SSL_get1_peer_certificate(this.#ssl)
    if (certificate === null) return undefined
    const bio = BIO_new(BIO_s_mem())
    i2d_X509_bio(bio, certificate)
    const der = Buffer.alloc(i2d_X509(certificate, null) as number)
    BIO_read(bio, der, der.length)
    BIO_free(bio)
    X509_free(certificate)
    return der
  }

  /** Why it failed. */
  failure(): string {
    const verdict = SSL_get_verify_result(this.#ssl) as number
    return verdict === 0 ? lastError() : String(X509_verify_cert_error_string(verdict))
  }

  free(): void {
    if (this.#open) SSL_free(this.#ssl)
    this.#open = false
  }
}

/** What a peer says with an alert. */
export function alertText(description: number): string {
  return `the peer says: ${SSL_alert_desc_string_long(description)}`
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
