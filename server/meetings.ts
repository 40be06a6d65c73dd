import { randomBytes } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import { EdgeMeshError } from '#shared/errors.ts'
import type { Logger } from '#shared/log.ts'
import { type Nat, natOf, remoteOf, type Sighting } from '#shared/nat.ts'
import {
  type Address,
  localPortHeader,
  mappingHeader,
  measuredMapping,
  ownerOf,
  punchPort,
  type RendezvousSighting,
  rendezvousProtocol,
  roundTripHeader,
  type ServerMessage,
  ticketHeader,
} from '#shared/wire.ts'
import { isWorthTrying, mannerOf, type NatKnowledge, openingsOf, type Party } from './rendezvous.ts'
import type { ServerMetrics } from './server-metrics.ts'

/** A pod that takes part: its control channel. */
export interface Participant {
  readonly podUid: string
  readonly observed: Party['observed'] | undefined
  nat: NatKnowledge | undefined
  send(message: ServerMessage): void
}

/** What the catalogue says of a pod's addresses: never what the pod says, or its peers could be made to dial anything. */
export type Addresses = Pick<Party, 'podIPs' | 'hostIPs'>

export interface Guest {
  participant: Participant
  addresses: Addresses
}

interface Side extends Guest {
  ticket: string
  party?: Party
  socket?: Duplex
}

interface Meeting {
  dialer: Side
  acceptor: Side
  timer: NodeJS.Timeout
}

export interface MeetingsOptions {
  replica: string
  /** Tells the replica that owns the ticket what we saw; false when it is not known. */
  tellOwner: (owner: string, ticket: string, sighting: RendezvousSighting) => boolean
  metrics: ServerMetrics
  log: Logger
}

const maxMeetings = 5_000
const maxPerPod = 32
/** How long both sides have to come, in ms. */
const meetMs = 5_000
/** How long a meeting is remembered after its start, for its result and for the NATs' mappings to be held; in ms. */
const heldMs = 6_000
const maxRoundTripMs = 2_000

/**
 * Rendezvous for punched connections: both pods connect from the port that they will punch from, are told where the
 * other was seen, and start at the same moment. The addresses travel on the control channels only.
 */
export class Meetings {
  readonly #replica: string
  readonly #tellOwner: MeetingsOptions['tellOwner']
  readonly #metrics: ServerMetrics
  readonly #log: Logger
  readonly #byTicket = new Map<string, { meeting: Meeting; side: Side }>()
  readonly #byPod = new Map<string, number>()
  /** Connections to rendezvous of other replicas, which hold their NATs' mappings. */
  readonly #passing = new Set<Duplex>()

  constructor({ replica, tellOwner, metrics, log }: MeetingsOptions) {
    this.#replica = replica
    this.#tellOwner = tellOwner
    this.#metrics = metrics
    this.#log = log
  }

  /** Calls both to the rendezvous. Throws `limit`, or `unreachable` when nothing can come of it. */
  call(dialer: Guest, acceptor: Guest, id: number, attempt: number): void {
    const pods = [dialer, acceptor].map((guest) => guest.participant.podUid)
    const busy = pods.some((uid) => (this.#byPod.get(uid) ?? 0) >= maxPerPod)
    if (busy || this.#byTicket.size >= 2 * maxMeetings)
      throw new EdgeMeshError('limit', 'Cannot call a rendezvous: too many are under way.')
    if (!isWorthTrying(expected(dialer.participant, acceptor.participant), attempt)) {
      this.#metrics.rendezvous.inc({ outcome: 'hopeless' })
      throw new EdgeMeshError('unreachable', 'Cannot call a rendezvous: these NATs cannot be crossed.')
    }
    const meeting: Meeting = {
      dialer: { ...dialer, ticket: this.#ticket() },
      acceptor: { ...acceptor, ticket: this.#ticket() },
      timer: setTimeout(() => this.#end(meeting, 'missed'), meetMs),
    }
    for (const side of [meeting.dialer, meeting.acceptor]) {
      this.#byTicket.set(side.ticket, { meeting, side })
      this.#byPod.set(side.participant.podUid, (this.#byPod.get(side.participant.podUid) ?? 0) + 1)
    }
    const { podUid: from } = dialer.participant
    acceptor.participant.send({ type: 'meet', ticket: meeting.acceptor.ticket, from })
    dialer.participant.send({ type: 'meet', ticket: meeting.dialer.ticket, id })
  }

  /** Deals with one rendezvous connection, for a meeting of ours or of another replica. True when its ticket is ours. */
  onUpgrade(request: IncomingMessage, socket: Duplex): boolean {
    socket.on('error', () => socket.destroy())
    const ticket = String(request.headers[ticketHeader] ?? '')
    const sighting = sightingOf(request)
    const side = this.#byTicket.get(ticket)?.side
    const isOurs = side !== undefined && side.party === undefined
    if (sighting === undefined || !(isOurs || this.#pass(ticket, sighting, socket))) {
      socket.once('finish', () => socket.destroy())
      socket.end('HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: 0\r\n\r\n')
      return false
    }
    if (isOurs) side.socket = socket
    socket.once('close', () => socket.destroy())
    socket.resume()
    socket.write(
      `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: ${rendezvousProtocol}\r\n\r\n`,
    )
    this.onSighted(ticket, sighting)
    return isOurs
  }

  /** One side has come, to us or to the replica that tells us. */
  onSighted(ticket: string, { localPort, observed, roundTripMs, mapping }: RendezvousSighting): void {
    const { meeting, side } = this.#byTicket.get(ticket) ?? {}
    if (meeting === undefined || side === undefined || side.party !== undefined) return
    const nat = learn(side.participant, side.addresses.podIPs, { localPort, observed }, mapping)
    side.party = { nat, localPort, observed, ...side.addresses, roundTripMs }
    this.#startOnceBothAreHere(meeting)
  }

  /** Tells the replica whose meeting it is, and holds the connection until that is over. */
  #pass(ticket: string, sighting: RendezvousSighting, socket: Duplex): boolean {
    const owner = ownerOf(ticket)
    if (owner === this.#replica || this.#passing.size >= 2 * maxMeetings) return false
    if (!this.#tellOwner(owner, ticket, sighting)) return false
    this.#passing.add(socket)
    const over = setTimeout(() => socket.destroy(), meetMs + heldMs)
    socket.once('close', () => {
      clearTimeout(over)
      this.#passing.delete(socket)
    })
    return true
  }

  /** The asking side tells how it went, and where it met the other: so a NAT's filtering is learnt, and that it maps independently. */
  onResult(participant: Participant, ticket: string, open: boolean, met?: Address): void {
    const found = this.#byTicket.get(ticket)
    if (found === undefined || found.side.participant !== participant || found.side !== found.meeting.dialer)
      return
    const { dialer, acceptor } = found.meeting
    if (dialer.party === undefined || acceptor.party === undefined) return
    const manner = mannerOf(dialer.party, acceptor.party)
    const listener = { 'dialer-listens': dialer, 'acceptor-listens': acceptor }[manner as string]
    if (listener?.participant.nat !== undefined) {
      listener.participant.nat = { ...listener.participant.nat, filtering: open ? 'open' : 'restricted' }
    }
    const { nat } = acceptor.participant
    if (open && nat !== undefined && isMetAsSeen(met, dialer.party, acceptor.party))
      acceptor.participant.nat = { ...nat, ...(nat.proven ? {} : { mapping: 'independent', proven: true }) }
    this.#end(found.meeting, open ? 'open' : 'failed')
  }

  close(): void {
    for (const { meeting } of [...this.#byTicket.values()]) this.#end(meeting, 'missed')
    for (const socket of this.#passing) socket.destroy()
  }

  #startOnceBothAreHere(meeting: Meeting): void {
    const { dialer, acceptor, timer } = meeting
    if (dialer.party === undefined || acceptor.party === undefined) return
    clearTimeout(timer)
    meeting.timer = setTimeout(() => this.#end(meeting, 'unknown'), heldMs)
    const nonces = { ask: randomBytes(16).toString('hex'), answer: randomBytes(16).toString('hex') }
    const openings = openingsOf(dialer.party, acceptor.party, nonces)
    for (const role of ['acceptor', 'dialer'] as const) {
      const { participant, ticket } = meeting[role]
      participant.send({ type: 'rendezvous', ticket, opening: openings[role] })
    }
    this.#log.info(
      {
        from: dialer.participant.podUid,
        to: acceptor.participant.podUid,
        manner: mannerOf(dialer.party, acceptor.party),
        startInMs: [openings.dialer.startInMs, openings.acceptor.startInMs],
      },
      'rendezvous',
    )
  }

  #end(meeting: Meeting, outcome: 'open' | 'failed' | 'missed' | 'unknown'): void {
    clearTimeout(meeting.timer)
    this.#metrics.rendezvous.inc({ outcome })
    for (const { ticket, socket, participant } of [meeting.dialer, meeting.acceptor]) {
      if (!this.#byTicket.delete(ticket)) continue
      socket?.destroy()
      const left = (this.#byPod.get(participant.podUid) ?? 1) - 1
      if (left === 0) this.#byPod.delete(participant.podUid)
      else this.#byPod.set(participant.podUid, left)
    }
  }

  #ticket(): string {
    return `${this.#replica}.${randomBytes(32).toString('base64url')}`
  }
}

/**
 * Whether a pod was met where the server had seen it: its NAT has mapped a port for the peer as it did for the server. The
 * contrary is not believed: who lies should not be able to make others think that a peer is out of reach.
 */
function isMetAsSeen(met: Address | undefined, dialer: Party, { observed }: Party): boolean {
  if (met === undefined || dialer.observed.address === observed.address) return false
  return met.address === observed.address && met.port === observed.port
}

/** Undefined for what is not a request of a sidecar of ours. */
function sightingOf(request: IncomingMessage): RendezvousSighting | undefined {
  const observed = remoteOf(request.socket)
  const roundTripMs = Number(request.headers[roundTripHeader]) || 0
  const mapping = request.headers[mappingHeader]
  if (observed === undefined) return undefined
  try {
    const localPort = punchPort(Number(request.headers[localPortHeader]), localPortHeader)
    return {
      localPort,
      observed,
      roundTripMs: Math.round(Math.min(maxRoundTripMs, Math.max(0, roundTripMs))),
      ...(mapping === undefined ? {} : { mapping: measuredMapping(mapping, mappingHeader) }),
    }
  } catch {
    return undefined
  }
}

/** Nothing is hopeless between pods that we know too little of. */
function expected(dialer: Participant, acceptor: Participant) {
  if (dialer.nat === undefined || dialer.observed === undefined) return 'both'
  if (acceptor.nat === undefined || acceptor.observed === undefined) return 'both'
  return mannerOf(
    { nat: dialer.nat, observed: dialer.observed },
    { nat: acceptor.nat, observed: acceptor.observed },
  )
}

/**
 * What the pod's NAT is by its newest sighting, and by what the pod itself has measured: who lies of it is not met. What is
 * proven, and how it filters, is kept.
 */
function learn(
  participant: Participant,
  podIPs: readonly string[],
  sighting: Sighting,
  measured: RendezvousSighting['mapping'],
): NatKnowledge {
  const { nat: before } = participant
  const unknown: Nat = { mapping: 'independent', portPreserved: true, proven: false }
  const guessed = natOf([sighting], podIPs) ?? unknown
  const seen = measured === undefined ? guessed : { ...guessed, mapping: measured, proven: true }
  const isKept = measured === undefined && before?.proven === true
  const nat: NatKnowledge = { ...(isKept ? before : seen), filtering: before?.filtering ?? 'unknown' }
  participant.nat = nat
  return nat
}
