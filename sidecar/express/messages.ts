import type { FastPathMode } from '#shared/pump/mode.ts'

/** What of a connection's access line is known before it begins. */
export interface About {
  destination: string
  service?: string
  endpoint: string
  podUid?: string
  route: 'plain' | 'local'
}

export interface Target {
  /** Endpoint key: targets of a flow are sorted by it and take turns. */
  key: string
  /** sockaddr_in or sockaddr_in6. */
  address: Uint8Array
  about: About
}

/** How connections to one destination go until the main thread says otherwise. */
export interface Flow {
  targets: readonly Target[]
}

export interface Listener {
  fd: number
  family: 4 | 6
}

export interface ExpressData {
  ledger: SharedArrayBuffer
  mode: FastPathMode
  maxConnections: number
}

export type ExpressOrder =
  | { type: 'listen'; listeners: readonly Listener[] }
  /** `after`: the key that had the last turn, for a flow that is new. */
  | { type: 'flow'; key: string; flow: Flow | undefined; after?: string }
  /** Accepts no more, and says `idle`. */
  | { type: 'unlisten' }
  /** Resets all that is open, and says `idle`. */
  | { type: 'abort' }

/** A connection that is the main thread's from now on; nothing of it has been read. */
export interface Punt {
  fd: number
  /** The flow that could not carry it. */
  failedFlow?: string
}

export type ExpressReport =
  | { type: 'punts'; punts: readonly Punt[] }
  /** Connections that are over: `figures` has `figuresEach` numbers of each. */
  | { type: 'closed'; abouts: readonly About[]; figures: Float64Array }
  | { type: 'idle' }

/** Index into `abouts`, index into `endings`, bytes sent and received by the app, ms until connected, ms in all. */
export const figuresEach = 6

/** How a connection ended, as the access line has it. */
export const endings = [
  { closeReason: 'closed' },
  { closeReason: 'reset by app' },
  { closeReason: 'reset by peer' },
  { closeReason: 'aborted' },
  { closeReason: 'reset', error: 'Cannot go on: the app gave up.' },
] as const
export const CLOSED = 0
export const RESET_BY_APP = 1
export const RESET_BY_PEER = 2
export const ABORTED = 3
export const GAVE_UP = 4
