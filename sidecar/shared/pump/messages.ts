import type { TlsIdentity } from './openssl.ts'

/**
 * What the main thread asks of the worker. Descriptors stay the main thread's: the worker never closes one, so a
 * number can never be closed by one thread after the other has got it for something new.
 */
export type Order =
  | { type: 'identity'; identity: TlsIdentity }
  /** Joins two sockets; what `ended` says of each has already been passed on to the other. */
  | { type: 'join'; id: number; a: number; b: number; aEnded: boolean; bEnded: boolean }
  /** TLS over a socket. As client to `serverName`, it says `name` first; as server it is told one. */
  | { type: 'secure'; id: number; fd: number; client?: { serverName: string; name: Uint8Array } }
  /** The connection may be used: the server has checked who it is and what for, the client that it is still wanted. */
  | { type: 'accept'; id: number }
  /** From this socket into TLS; undefined passes on the end only. `ended`: it has been sent our FIN. */
  | { type: 'feed'; id: number; fd: number | undefined; ended: boolean }
  /** From TLS into this socket; undefined waits for the end only. */
  | { type: 'drain'; id: number; fd: number | undefined }
  | { type: 'abort'; id: number }
  /** For the guest of this worker, in its own words. */
  | { type: 'guest'; order: unknown }

export type Report =
  /** All that the worker needs is there. */
  | { type: 'ready' }
  | { type: 'guest'; report: unknown }
  /** A pipe that now exists; kept until the process ends. */
  | { type: 'pipe'; read: number; write: number }
  /** Server: a client that shows this certificate (DER) asks for `name`. Client: the server agrees. */
  | { type: 'named'; id: number; certificate: Uint8Array; name: Uint8Array }
  /** Server: the client has seen our consent, so both sides know. */
  | { type: 'agreed'; id: number }
  | {
      type: 'finished'
      id: number
      /** Bytes from `a` or the fed socket; and from `b` or out of TLS. */
      aToB: number
      bToA: number
      /** Which side broke; undefined after a clean end of both directions, and when it was aborted. */
      broke?: 'a' | 'b'
      error?: string
    }

export interface WorkerData {
  epollFd: number
  wakeFd: number
  maxPipes: number
  /** Whatever the guest has put there. */
  guest?: unknown
}

/** Length of a name, in bytes. */
export const nameBytes = 20
