import koffi from 'koffi'

/**
 * AES-128-GCM by Node's own OpenSSL (see #shared/pump/openssl.ts), with one context for all keys. Node's Cipheriv is a new one for
 * each record, for which OpenSSL looks the cipher up: that costs ten times what the sealing does.
 */
const openssl = koffi.load(null)

const EVP_CIPHER_CTX_new = openssl.func('void *EVP_CIPHER_CTX_new()')
const EVP_aes_128_gcm = openssl.func('void *EVP_aes_128_gcm()')
const EVP_CipherInit_ex = openssl.func(
  'int EVP_CipherInit_ex(void *ctx, void *cipher, void *engine, const uint8_t *key, const uint8_t *iv, int encrypt)',
)
const EVP_CipherUpdate = openssl.func(
  'int EVP_CipherUpdate(void *ctx, uint8_t *out, _Out_ int *written, const uint8_t *bytes, int length)',
)
const EVP_CipherFinal_ex = openssl.func('int EVP_CipherFinal_ex(void *ctx, uint8_t *out, _Out_ int *written)')
const EVP_CIPHER_CTX_ctrl = openssl.func(
  'int EVP_CIPHER_CTX_ctrl(void *ctx, int command, int number, uint8_t *bytes)',
)

// openssl/evp.h
const getTag = 0x10
const setTag = 0x11
export const tagBytes = 16
const written = new Int32Array(1)
const rest = Buffer.alloc(16)

const context = EVP_CIPHER_CTX_new()
EVP_CipherInit_ex(context, EVP_aes_128_gcm(), null, null, null, 1)

function must(result: number): void {
  if (result !== 1) throw new Error('OpenSSL refuses AES-128-GCM')
}

/**
 * Encrypts bytes where they are, and puts the tag into the 16 bytes after them. Each pair of `key` (16 bytes) and `nonce` (12
 * bytes) may be used once only.
 */
export function seal(key: Uint8Array, nonce: Uint8Array, header: Uint8Array, bytesAndTag: Uint8Array): void {
  const bytes = bytesAndTag.subarray(0, -tagBytes)
  must(EVP_CipherInit_ex(context, null, null, key, nonce, 1))
  must(EVP_CipherUpdate(context, null, written, header, header.length))
  must(EVP_CipherUpdate(context, bytes, written, bytes, bytes.length))
  must(EVP_CipherFinal_ex(context, rest, written)) // gives nothing more, but must come before the tag
  must(EVP_CIPHER_CTX_ctrl(context, getTag, tagBytes, bytesAndTag.subarray(-tagBytes)))
}

/** The bytes that were sealed; undefined where they, their header, nonce or tag are not those of whoever has the key. */
export function open(
  key: Uint8Array,
  nonce: Uint8Array,
  header: Uint8Array,
  bytesAndTag: Uint8Array,
): Buffer | undefined {
  const bytes = bytesAndTag.subarray(0, -tagBytes)
  const plain = Buffer.allocUnsafeSlow(bytes.length) // who keeps a few of them keeps no pool
  must(EVP_CipherInit_ex(context, null, null, key, nonce, 0))
  must(EVP_CIPHER_CTX_ctrl(context, setTag, tagBytes, bytesAndTag.subarray(-tagBytes)))
  must(EVP_CipherUpdate(context, null, written, header, header.length))
  must(EVP_CipherUpdate(context, plain, written, bytes, bytes.length))
  if (EVP_CipherFinal_ex(context, rest, written) === 1) return plain
  plain.fill(0)
  return undefined
}
