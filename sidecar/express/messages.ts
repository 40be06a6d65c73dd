import type { FastPathMode } from '#shared/pump/mode.ts'
import type { Detour } from '../services/destination.ts'

/** The routes that a lane to a peer may take, best first. */
export type LaneRoute = 'direct' | 'punched' | 'relayed'
export const laneRoutes: readonly LaneRoute[] = ['direct', 'punched', 'relayed']

/** What of a connection's access line is known before it begins. */
export interface About {
  direction: 'inbound' | 'outbound'
  destination: string
  peer?: string
  service?: string
  endpoint?: string
  podUid?: string
  route: 'plain' | 'local' | 'inbound' | LaneRoute
}

export interface Target {
  /** Endpoint key: targets of a flow are sorted by it and take turns. */
  key: string
  /** sockaddr_in or sockaddr_in6. */
  address: Uint8Array
  /** Pod uid of the peer whose lanes it is reached by; undefined where no tunnel is needed. */
  peer?: string
  about: About
}

/** A connected socket that both ends have agreed to make a lane of; it is the worker's from then on. */
export interface NewLane {
  id: number
  fd: number
  route: LaneRoute
  /** As dialler: who is to be met. */
  client?: { podUid: string; serverName: string }
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
  /** Flow keys of what peers may reach here, and what each is called. */
  served: ReadonlyMap<string, string>
}

export type ExpressOrder =
  | { type: 'listen'; listeners: readonly Listener[] }
  /** A captured connection that comes back from the main thread, with nothing read. */
  | { type: 'captured'; fd: number; family: 4 | 6 }
  /** `after`: the key that had the last turn, for a flow that is new. */
  | { type: 'flow'; key: string; flow: Flow | undefined; after?: string }
  /** Accepts no more, and says `idle`. */
  | { type: 'unlisten' }
  | { type: 'lane'; lane: NewLane }
  /** The lane's peer is who it should be; access lines call it `peer`. */
  | { type: 'accept'; id: number; peer: string }
  | { type: 'refuse'; id: number }
  /** Lanes of a route, or all that peers have made, take no new streams. */
  | { type: 'retire'; route: LaneRoute }
  /** One lane takes no new streams. */
  | { type: 'leave'; id: number }
  | { type: 'drain' }
  /** Flow keys of what peers may reach here, and what each is called. */
  | { type: 'self'; served: ReadonlyMap<string, string> }
  /** Resets all that is open, and says `idle`. */
  | { type: 'abort' }

/** A connection that is the main thread's from now on; nothing of it has been read. */
export interface Punt extends Detour {
  fd: number
  /** The flow that could not carry it. */
  failedFlow?: string
}

export type ExpressReport =
  | { type: 'punts'; punts: readonly Punt[] }
  /** Connections that are over: `figures` has `figuresEach` numbers of each. */
  | { type: 'closed'; abouts: readonly About[]; figures: Float64Array }
  | { type: 'idle' }
  /** A lane's peer shows this certificate (DER), which the mesh's roots vouch for. */
  | { type: 'named'; id: number; certificate: Uint8Array }
  | { type: 'up'; id: number }
  | { type: 'retired'; id: number }
  | { type: 'over'; id: number; error: string }

/** Index into `abouts`, index into `endings`, bytes sent and received by the app, ms until connected, ms in all. */
export const figuresEach = 6

/** How a connection ended, as the access line has it. */
export const endings = [
  { closeReason: 'closed' },
  { closeReason: 'reset by app' },
  { closeReason: 'reset by peer' },
  { closeReason: 'aborted' },
  { closeReason: 'reset', error: 'Cannot go on: the app gave up.' },
  { closeReason: 'refused', error: 'Cannot connect: the app refuses.' },
  { closeReason: 'timeout', error: 'Cannot connect: the app does not answer.' },
  { closeReason: 'unreachable', error: 'Cannot connect: the app is not reachable.' },
  { closeReason: 'forbidden', error: 'the pod does not declare this port' },
  { closeReason: 'limit', error: 'too many connections are open' },
  { closeReason: 'stopping', error: 'the pod is stopping' },
] as const
export const CLOSED = 0
export const RESET_BY_APP = 1
export const RESET_BY_PEER = 2
export const ABORTED = 3
export const GAVE_UP = 4
export const REFUSED = 5
export const TIMEOUT = 6
export const UNREACHABLE = 7
export const FORBIDDEN = 8
export const LIMIT = 9
export const STOPPING = 10
