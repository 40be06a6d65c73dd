import { endpoint, ipAddress, podUid, serviceEntry, serviceId } from './catalogue.ts'
import { flag, integer, list, type Of, object, oneOf, optional, parseJson, tagged, text } from './shape.ts'

/**
 * Every message that crosses a socket between sidecar and server. The control channel is a WebSocket over TLS at
 * `controlPath`, subprotocol `controlProtocol`; each message is one JSON text frame. The version travels first:
 * in the subprotocol, and again as `v` in hello and welcome.
 */
export const controlPath = '/control'
export const controlProtocol = 'edgemesh.v1'
export const wireVersion = 1

/** Largest frame in bytes that each side accepts. A full index of 3,000 services is under 1 MiB. */
export const maxClientFrame = 64 * 1024
export const maxServerFrame = 32 * 1024 * 1024

/**
 * Relay joins: `GET relayPath` with `Upgrade: relayProtocol` and the ticket in `ticketHeader`, answered by 101 once
 * both sides have joined; from then on the two TCP streams are one. In the clear, or inside TLS where the network lets
 * nothing else through. Who comes first is answered by 102 at once. `serverProduct`, in the header `Server` of all but 101,
 * tells the server's answers from those of whatever is on the way.
 */
export const relayPath = '/relay'
export const relayProtocol = 'edgemesh-relay-v1'
export const ticketHeader = 'edgemesh-ticket'
export const serverProduct = 'edgemesh'
/** Names the replica that passes a join on to the ticket's owner; a join that carries it is never passed on again. */
export const forwardedHeader = 'edgemesh-forwarded-by'

/** `<owner replica>.<32 random bytes, base64url>`: the replica that can redeem it travels in the ticket. */
export const ticketText = text(128, /^[a-z0-9-]{1,63}\.[A-Za-z0-9_-]{43}$/)

/** The ticket's owner: whatever stands before the dot. Empty for what is no ticket. */
export function ownerOf(ticket: string): string {
  return /^([a-z0-9-]{1,63})\.[A-Za-z0-9_-]{43}$/.exec(ticket)?.[1] ?? ''
}

/**
 * Rendezvous connections: `GET rendezvousPath` with `Upgrade: rendezvousProtocol`, the ticket, and what only the pod knows:
 * the local port and the round trip in ms. The server looks at where it comes from; nothing else travels on it.
 */
export const rendezvousPath = '/rendezvous'
export const rendezvousProtocol = 'edgemesh-rendezvous-v1'
export const localPortHeader = 'edgemesh-local-port'
export const roundTripHeader = 'edgemesh-round-trip'
/** How the pod's NAT maps, where the pod has measured that. */
export const mappingHeader = 'edgemesh-mapping'
export const measuredMapping = oneOf('none', 'independent', 'dependent')

/** `GET observedPath`, in the clear: where the server sees the connection come from, an `Address` as JSON. */
export const observedPath = '/observed'

const version = integer(wireVersion, wireVersion)
const requestId = integer(1, 2 ** 31)
/** Local ports that a pod punches from, and that peers are told to dial: none that a service would be on. */
export const punchPort = integer(32_768, 60_999)
/** 16 random bytes, hex. */
const nonce = text(32, /^[0-9a-f]{32}$/)
const address = object({ address: ipAddress, port: integer(1, 65_535) })
export type Address = Of<typeof address>
export const decodeAddress = (json: string): Address => parseJson(json, address)

/**
 * A certificate request. The SANs come from the token, so of a PKCS#10 only the key and the proof of possession
 * would be used; this is just those (and saves every sidecar 14 MB of X.509 library).
 */
const certificateRequest = object({
  /** The pod's projected ServiceAccount token, audience `edgemesh`; a fresh one for each request. */
  token: text(16_384),
  /** P-256 public key, SPKI DER, base64. */
  publicKey: text(512, /^[A-Za-z0-9+/]+=*$/),
  /** ECDSA-SHA256 by that key (DER, base64) over `proofInput(token)`. */
  proof: text(256, /^[A-Za-z0-9+/]+=*$/),
})
export type CertificateRequest = Of<typeof certificateRequest>

/** What the proof of possession signs: bound to this purpose and to the token that it travels with. */
export function proofInput(token: string): Buffer {
  return Buffer.from(`edgemesh certificate request v1\n${token}`)
}

export const issuedCertificate = object({
  /** Leaf first, then intermediates; PEM. */
  chain: text(65_536),
  /** Roots that peers are verified against; PEM. Replaced whole. */
  trustBundle: text(65_536),
  /** Milliseconds since the epoch, by the server's clock. */
  notAfter: integer(0, Number.MAX_SAFE_INTEGER),
  /** How long it lives from now on, in ms: whose clock is wrong can still tell when to renew. */
  lifetimeMs: optional(integer(0, Number.MAX_SAFE_INTEGER)),
})
export type IssuedCertificate = Of<typeof issuedCertificate>

const clientMessage = tagged({
  /** First message, once. The channel is bound to the token's pod uid from then on. */
  hello: object({
    v: version,
    request: certificateRequest,
    podIPs: list(ipAddress, 2),
    hostIP: optional(ipAddress),
    /** Of this connection, for the server to see what a NAT makes of it. */
    localPort: optional(integer(1, 65_535)),
    node: optional(text(253)),
    /** What the index is known at; the server answers with deltas where it can. */
    resume: optional(object({ epoch: text(64), version: integer(0, Number.MAX_SAFE_INTEGER) })),
    /** Services to subscribe to at once, after a reconnect. */
    subscriptions: list(serviceId, 500),
    /**
     * The pod has a certificate that need not be renewed yet, with a trust bundle of this digest (`digestOf`): where it is
     * still the same, the welcome brings no other.
     */
    certifiedBy: optional(text(64, /^[0-9a-f]+$/)),
  }),
  renew: object({ request: certificateRequest }),
  subscribe: object({ service: serviceId }),
  unsubscribe: object({ service: serviceId }),
  /**
   * Asks for a relayed connection to a peer; answered by `ticket` or `failed` with the same id. With `unlessNear` it fails with
   * `near` where both come from one public address: the pod punches first, and asks again if that fails.
   */
  relay: object({ id: requestId, podUid, unlessNear: optional(flag) }),
  /** Asks for a punched connection to a peer, for the `attempt`th time since one succeeded; answered by `meet` or `unpunched`. */
  punch: object({ id: requestId, podUid, attempt: integer(0, 1_000_000) }),
  /** What became of a rendezvous, by the side that had asked for it; and where it met the peer. */
  punched: object({ ticket: ticketText, open: flag, met: optional(address) }),
  /** The pod is draining: no new relayed connections, presence ends. */
  bye: object({}),
})
export type ClientMessage = Of<typeof clientMessage>

export const failureCodes = ['peer-absent', 'limit', 'forbidden', 'stopping'] as const

/** What one side of a punched connection does. Both sides start at about the same moment. */
const opening = object({
  /** The one who speaks TLS as client: the one who asked. Says nothing about who dials. */
  role: oneOf('dialer', 'acceptor'),
  /** Where the peer may be met; all are dialled from the local port of the rendezvous connection. */
  candidates: list(address, 8),
  startInMs: integer(0, 10_000),
  /** After so long it dials no more and listens on the same port. */
  listenAfterMs: optional(integer(0, 10_000)),
  /** A dial without answer is begun anew after so long; longer than a round trip to the peer. */
  retryMs: integer(10, 5_000),
  /** From the start on; then it has failed. */
  windowMs: integer(100, 10_000),
  /** First words on the connection, in the clear, so that each side knows which of several sockets the other means. */
  ask: nonce,
  answer: nonce,
})
export type Opening = Of<typeof opening>

const serverMessage = tagged({
  /** Answer to hello. */
  welcome: object({
    v: version,
    trustDomain: text(253),
    replica: text(63),
    /** Absent for who has a good one. */
    certificate: optional(issuedCertificate),
    /** Where the server sees this connection come from. */
    observed: optional(address),
  }),
  certificate: object({ certificate: issuedCertificate }),
  /** The index, whole (`full`) or the change from the version before. */
  index: object({
    epoch: text(64),
    version: integer(0, Number.MAX_SAFE_INTEGER),
    full: flag,
    upserts: list(serviceEntry, 100_000),
    removes: list(serviceId, 100_000),
  }),
  /** All endpoints of one subscribed service; sent on subscription and at each change. */
  endpoints: object({ service: serviceId, endpoints: list(endpoint, 20_000) }),
  /** The ports that this pod declares (containerPorts and the targetPorts of services): all it may be dialled at. */
  self: object({ ports: list(integer(1, 65_535), 10_000) }),
  ticket: object({ id: requestId, ticket: ticketText }),
  failed: object({ id: requestId, code: oneOf(...failureCodes, 'near'), message: text(1_000) }),
  /** A peer, `from`, wants to reach this pod: join the relay with this ticket and serve the tunnel on it. */
  incoming: object({ ticket: ticketText, from: optional(podUid) }),
  /** Connect to the rendezvous with this ticket; `id` when it answers our own `punch`, `from` who asked when not. */
  meet: object({ ticket: ticketText, id: optional(requestId), from: optional(podUid) }),
  /** Both sides have been seen: now. */
  rendezvous: object({ ticket: ticketText, opening }),
  unpunched: object({ id: requestId, code: oneOf(...failureCodes, 'hopeless'), message: text(1_000) }),
  /** The server is going; come back after that many ms (smeared over its clients). */
  goingAway: object({ comeBackMs: integer(0, 600_000) }),
  /** The last message before the server closes the channel; see closeCodes. */
  error: object({ code: text(64), message: text(2_000) }),
})
export type ServerMessage = Of<typeof serverMessage>

export const decodeClientMessage = (json: string): ClientMessage => parseJson(json, clientMessage)
export const decodeServerMessage = (json: string): ServerMessage => parseJson(json, serverMessage)

/**
 * Between two replicas of the server: a WebSocket at `replicaPath`, both sides with the server's certificate. The one
 * that dials asks, the other answers.
 */
export const replicaPath = '/replica'
export const replicaProtocol = 'edgemesh-replica.v1'

const sighting = object({
  localPort: punchPort,
  observed: address,
  roundTripMs: integer(0, 2_000),
  mapping: optional(measuredMapping),
})
/** What a server sees of a pod that comes to a rendezvous, and what only the pod knows of it. */
export type RendezvousSighting = Of<typeof sighting>

const replicaMessage = tagged({
  /** First message of the one that was dialled: who it is. */
  replica: object({ v: version, name: text(63, /^[a-z0-9-]{1,63}$/) }),
  /** Give this message to that pod; `wait` for a pod that may be back in a moment. Answered by `delivered`. */
  deliver: object({ id: requestId, podUid, wait: flag, message: serverMessage }),
  /** Whether the pod was there to take it. */
  delivered: object({ id: requestId, taken: flag }),
  /** The pod has a channel here since `at` (ms since the epoch), seen from `from`: older ones elsewhere are void. */
  moved: object({ podUid, at: integer(0, Number.MAX_SAFE_INTEGER), from: optional(ipAddress) }),
  /** A pod has come to a rendezvous of yours, by our port. */
  sighted: object({ ticket: ticketText, sighting }),
})
export type ReplicaMessage = Of<typeof replicaMessage>
export const decodeReplicaMessage = (json: string): ReplicaMessage => parseJson(json, replicaMessage)

/** WebSocket close codes of ours (RFC 6455 keeps 4000-4999 for applications). */
export const closeCodes = {
  /** Malformed or unexpected message. */
  badMessage: 4400,
  /** Token or proof refused; try again only with another token. */
  unauthenticated: 4401,
  /** The pod is deleted or not (yet) known. */
  podUnknown: 4404,
  /** Another channel of the same pod took over. */
  replaced: 4409,
  limit: 4429,
  goingAway: 4503,
} as const
