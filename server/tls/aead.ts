import koffi from 'koffi'

/**
 * AES-128-GCM by Node's own OpenSSL (see #shared/pump/openssl.ts), with one context for all keys. Node's Cipheriv is a new one for
 * each record, for which OpenSSL looks the cipher up: that costs ten times what the sealing does.
 */
function load() {
  const openssl = koffi.load(null)
  const EVP_CIPHER_CTX_new = openssl.func('void *EVP_CIPHER_CTX_new()')
  const EVP_aes_128_gcm = openssl.func('void *EVP_aes_128_gcm()')
  const init = openssl.func(
    'int EVP_CipherInit_ex(void *ctx, void *cipher, void *engine, const uint8_t *key, const uint8_t *iv, int encrypt)',
  )
  const update = openssl.func(
    'int EVP_CipherUpdate(void *ctx, uint8_t *out, _Out_ int *written, const uint8_t *bytes, int length)',
  )
  const final = openssl.func('int EVP_CipherFinal_ex(void *ctx, uint8_t *out, _Out_ int *written)')
  const ctrl = openssl.func('int EVP_CIPHER_CTX_ctrl(void *ctx, int command, int number, uint8_t *bytes)')
  const context: unknown = EVP_CIPHER_CTX_new()
  must(init(context, EVP_aes_128_gcm(), null, null, null, 1))
  return { context, init, update, final, ctrl }
}

/** With the first record: where a Node does not export its OpenSSL there is none, as no handshake succeeds without it. */
let loaded: ReturnType<typeof load> | undefined

// openssl/evp.h
const getTag = 0x10
const setTag = 0x11
export const tagBytes = 16
const written = new Int32Array(1)
const rest = Buffer.alloc(16)

function must(result: number): void {
  if (result !== 1) throw new Error('OpenSSL refuses AES-128-GCM')
}

/**
 * Encrypts bytes where they are, and puts the tag into the 16 bytes after them. Each pair of `key` (16 bytes) and `nonce` (12
 * bytes) may be used once only.
 */
export function seal(key: Uint8Array, nonce: Uint8Array, header: Uint8Array, bytesAndTag: Uint8Array): void {
  loaded ??= load()
  const { context, init, update, final, ctrl } = loaded
  const bytes = bytesAndTag.subarray(0, -tagBytes)
  must(init(context, null, null, key, nonce, 1))
  must(update(context, null, written, header, header.length))
  must(update(context, bytes, written, bytes, bytes.length))
  must(final(context, rest, written)) // gives nothing more, but must come before the tag
  must(ctrl(context, getTag, tagBytes, bytesAndTag.subarray(-tagBytes)))
}

/** The bytes that were sealed; undefined where they, their header, nonce or tag are not those of whoever has the key. */
export function open(
  key: Uint8Array,
  nonce: Uint8Array,
  header: Uint8Array,
  bytesAndTag: Uint8Array,
): Buffer | undefined {
  loaded ??= load()
  const { context, init, update, final, ctrl } = loaded
  const bytes = bytesAndTag.subarray(0, -tagBytes)
  const plain = Buffer.allocUnsafeSlow(bytes.length) // who keeps a few of them keeps no pool
  must(init(context, null, null, key, nonce, 0))
  must(ctrl(context, setTag, tagBytes, bytesAndTag.subarray(-tagBytes)))
  must(update(context, null, written, header, header.length))
  must(update(context, plain, written, bytes, bytes.length))
  if (final(context, rest, written) === 1) return plain
  plain.fill(0)
  return undefined
}
