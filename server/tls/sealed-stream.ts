import { X509Certificate } from 'node:crypto'
import type { Socket } from 'node:net'
import { Duplex } from 'node:stream'
import { EdgeMeshError } from '#shared/errors.ts'
import { closeNotify, contentTypes, type TrafficKey } from '#shared/tls13/record.ts'
import { type OpenedRecord, RecordOpener, RecordSealer } from './records.ts'

export interface ChannelKeys {
  read: TrafficKey
  write: TrafficKey
}

/**
 * A TLS 1.3 connection whose handshake is done: nothing but its keys is kept. A TLSSocket keeps 50 kB for as long as the
 * connection is open, which thousands of idle control channels cannot afford.
 */
export class SealedStream extends Duplex {
  readonly #socket: Socket
  readonly #sealer: RecordSealer
  readonly #opener: RecordOpener
  readonly #certificate: Uint8Array | undefined
  #ended = false

  /**
   * `socket` is paused; `early` came after the handshake and is not read from it again. `certificate` is the peer's,
   * DER, which must have been verified.
   */
  constructor(socket: Socket, keys: ChannelKeys, early: Buffer, certificate?: Uint8Array) {
    super({ allowHalfOpen: false })
    this.#socket = socket
    this.#certificate = certificate
    this.#opener = new RecordOpener(keys.read)
    this.#sealer = new RecordSealer(keys.write)
    socket.on('data', (bytes) => this.#onData(bytes))
    socket.on('end', () => this.#end()) // without a closing alert: WebSocket tells what is whole
    socket.on('error', (error) => this.destroy(error))
    socket.on('close', () => this.destroy())
    if (early.length > 0) this.#onData(early)
  }

  get remoteAddress(): string | undefined {
    return this.#socket.remoteAddress
  }

  get remotePort(): number | undefined {
    return this.#socket.remotePort
  }

  /** Whether the peer has shown a certificate of our roots; the name and the method are those of a TLSSocket. */
  get authorized(): boolean {
    return this.#certificate !== undefined
  }

  getPeerX509Certificate(): X509Certificate | undefined {
    return this.#certificate === undefined ? undefined : new X509Certificate(this.#certificate)
  }

  override _read(): void {
    this.#socket.resume()
  }

  override _write(bytes: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#send(bytes, contentTypes.applicationData, done)
  }

  override _writev(chunks: readonly { chunk: Buffer }[], done: (error?: Error | null) => void): void {
    this.#send(Buffer.concat(chunks.map(({ chunk }) => chunk)), contentTypes.applicationData, done)
  }

  override _final(done: (error?: Error | null) => void): void {
    if (!this.#socket.writable) {
      done() // it has ended before us
      return
    }
    this.#send(closeNotify, contentTypes.alert, (error) => {
      if (error) done(error)
      else this.#socket.end(done)
    })
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#socket.destroy()
    done(error)
  }

  #send(bytes: Uint8Array, type: number, done: (error?: Error | null) => void): void {
    try {
      this.#socket.write(this.#sealer.seal(bytes, type), done)
    } catch (error) {
      done(error as Error)
    }
  }

  #onData(bytes: Buffer): void {
    if (this.destroyed || this.#ended) return // not even opened: it costs us nothing
    try {
      for (const record of this.#opener.open(bytes)) this.#onRecord(record)
    } catch (error) {
      this.destroy(error as Error)
    }
  }

  #end(): void {
    if (this.#ended) return
    this.#ended = true
    this.push(null)
  }

  #onRecord({ type, plain }: OpenedRecord): void {
    if (this.destroyed || this.#ended) return
    if (type === contentTypes.applicationData) {
      if (plain.length > 0 && !this.push(plain)) this.#socket.pause()
    } else if (type === contentTypes.alert && plain.equals(closeNotify)) this.#end()
    // Sidecars ask for nothing after the handshake, and a new key or a certificate is not known to be what it says.
    else throw new EdgeMeshError('bad-message', `Cannot take a TLS record of type ${type} here.`)
  }
}
