import koffi from 'koffi'

/** Bytes that OpenSSL finds by their address: passing a Buffer, and making one for each part, costs as much as sealing 1 kB. */
export interface Region<Bytes extends Uint8Array = Buffer> {
  readonly bytes: Bytes
  readonly address: number
}

/** `bytes` must outlive the region: the address alone does not keep them. */
export function regionOf<Bytes extends Uint8Array>(bytes: Bytes): Region<Bytes> {
  return { bytes, address: Number(koffi.address(bytes)) }
}

export const tagBytes = 16
export const nonceBytes = 12

function load() {
  const openssl = koffi.load(null)
  const written = regionOf(Buffer.allocUnsafeSlow(4))
  const rest = regionOf(Buffer.allocUnsafeSlow(tagBytes))
  return {
    create: openssl.func('uintptr_t EVP_CIPHER_CTX_new()'),
    free: openssl.func('void EVP_CIPHER_CTX_free(uintptr_t ctx)'),
    cipher: openssl.func('uintptr_t EVP_aes_128_gcm()')() as number,
    init: openssl.func(
      'int EVP_CipherInit_ex(uintptr_t ctx, uintptr_t cipher, uintptr_t engine, uintptr_t key, uintptr_t iv, int encrypt)',
    ),
    update: openssl.func(
      'int EVP_CipherUpdate(uintptr_t ctx, uintptr_t out, uintptr_t written, uintptr_t bytes, int length)',
    ),
    final: openssl.func('int EVP_CipherFinal_ex(uintptr_t ctx, uintptr_t out, uintptr_t written)'),
    ctrl: openssl.func('int EVP_CIPHER_CTX_ctrl(uintptr_t ctx, int command, int number, uintptr_t bytes)'),
    written,
    rest,
  }
}

/** With the first key: where a Node does not export its OpenSSL there is none, as no handshake succeeds without it. */
let loaded: ReturnType<typeof load> | undefined

// openssl/evp.h
const getTag = 0x10
const setTag = 0x11

function must(result: number): void {
  if (result !== 1) throw new Error('OpenSSL refuses AES-128-GCM')
}

/**
 * AES-128-GCM by Node's own OpenSSL. Node's Cipheriv is a new one for each record, for which OpenSSL looks the cipher up: that
 * costs ten times what the sealing does. Whatever it is given it is given by address; the caller keeps that alive.
 */
export class Aead {
  readonly #context: number
  #free = false

  constructor() {
    loaded ??= load()
    this.#context = loaded.create() as number
    must(loaded.init(this.#context, loaded.cipher, 0, 0, 0, 1))
  }

  /** For all that follows; 16 bytes. */
  setKey(key: number): void {
    if (loaded === undefined || this.#free) throw new Error('there is no key')
    must(loaded.init(this.#context, 0, 0, key, 0, 1))
  }

  /**
   * Encrypts `length` bytes from one place to another, or the same, and puts the tag behind them there. No nonce may be used
   * twice with one key.
   */
  seal(nonce: number, header: number, headerLength: number, from: number, length: number, to: number): void {
    if (loaded === undefined || this.#free) throw new Error('there is no key')
    const context = this.#context
    const { init, update, final, ctrl, written, rest } = loaded
    must(init(context, 0, 0, 0, nonce, 1))
    must(update(context, 0, written.address, header, headerLength))
    must(update(context, to, written.address, from, length))
    must(final(context, rest.address, written.address)) // gives nothing more, but must come before the tag
    must(ctrl(context, getTag, tagBytes, to + length))
  }

  /** False where the bytes, the tag behind them, their header or nonce are not those of whoever has the key. */
  open(
    nonce: number,
    header: number,
    headerLength: number,
    from: number,
    length: number,
    to: number,
  ): boolean {
    if (loaded === undefined || this.#free) throw new Error('there is no key')
    const context = this.#context
    const { init, update, final, ctrl, written, rest } = loaded
    must(init(context, 0, 0, 0, nonce, 0))
    must(ctrl(context, setTag, tagBytes, from + length))
    must(update(context, 0, written.address, header, headerLength))
    must(update(context, to, written.address, from, length))
    return final(context, rest.address, written.address) === 1
  }

  free(): void {
    if (!this.#free) loaded?.free(this.#context)
    this.#free = true
  }
}
