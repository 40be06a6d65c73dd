/** Of the server: its key and certificate, and the roots by which a client's certificate is verified; PEM all. */
export interface ServerIdentity {
  key: string
  certificate: string
  roots: string
}

/** What the main thread asks of the worker. */
export type Order =
  /** For handshakes that begin from now on. */
  | ({ type: 'identity' } & ServerIdentity)
  /** What a client sent. The first begins its handshake; each is answered. */
  | { type: 'bytes'; id: number; bytes: Uint8Array }
  /** The client is gone, or was too slow. */
  | { type: 'drop'; id: number }

export interface Answer {
  type: 'answer'
  id: number
  /** To be sent to the client. */
  bytes: Uint8Array
  /** The handshake is done: the secrets of both directions, and what the client has sent under its own already. */
  done?: {
    client: Uint8Array
    server: Uint8Array
    early: Uint8Array
    /** DER; only when the client showed one, and it was verified by our roots. */
    certificate: Uint8Array | undefined
  }
  /** The handshake has failed, for this reason. */
  error?: string
}

export type Report = { type: 'ready' } | Answer
