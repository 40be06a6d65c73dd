import {
  type Answer,
  AUTHORITATIVE_ANSWER,
  type DecodedPacket,
  decode,
  encode,
  type OptAnswer,
  type Question,
  RECURSION_AVAILABLE,
  RECURSION_DESIRED,
  TRUNCATED_RESPONSE,
} from 'dns-packet'
import type { Reply, ResponseCode } from './answer.ts'

const codes: Record<ResponseCode, number> = {
  NOERROR: 0,
  FORMERR: 1,
  SERVFAIL: 2,
  NXDOMAIN: 3,
  NOTIMP: 4,
  REFUSED: 5,
}

/** Largest UDP answer that crosses every link in one piece (DNS flag day 2020); clients may ask for less. */
export const maxUdpAnswer = 1_232
export const maxTcpMessage = 65_535
const headerBytes = 12

export interface Query {
  id: number
  question: Question
  recursionDesired: boolean
  /** The client's advertised UDP size when it speaks EDNS. */
  ednsSize: number | undefined
}

export type ParsedQuery = { query: Query } | { refuse: Buffer } | { drop: true }

/** Reads a client's message. Never throws: what cannot be read is refused where an id can be, else dropped. */
export function parseQuery(message: Buffer): ParsedQuery {
  if (message.length < headerBytes || (message.readUInt8(2) & 0x80) !== 0) return { drop: true } // RFC 1035: a response
  const opcode = (message.readUInt8(2) >> 3) & 0x0f
  if (opcode !== 0) return { refuse: bareReply(message, 'NOTIMP') }
  let packet: DecodedPacket
  try {
    packet = decode(message)
  } catch {
    return { refuse: bareReply(message, 'FORMERR') } // the bytes say nothing more than that they are malformed
  }
  const [question] = packet.questions ?? []
  if (question === undefined || packet.questions?.length !== 1)
    return { refuse: bareReply(message, 'FORMERR') }
  if (question.class !== undefined && question.class !== 'IN')
    return { refuse: bareReply(message, 'REFUSED') }
  const opt = packet.additionals?.find((a): a is OptAnswer & { name: string } => a.type === 'OPT')
  return {
    query: {
      id: message.readUInt16BE(0),
      question,
      recursionDesired: (message.readUInt8(2) & 0x01) !== 0,
      ednsSize: opt === undefined ? undefined : Math.max(512, opt.udpPayloadSize),
    },
  }
}

/** Encodes a reply for a transport that takes `limit` bytes; what does not fit is cut at whole records, with TC. */
export function encodeReply(query: Query, reply: Reply, authoritative: boolean, limit: number): Buffer {
  const whole = encodePart(query, reply, authoritative, false)
  if (whole.length <= limit) return whole
  const { rcode, answers } = reply
  const cut = (count: number) =>
    encodePart(
      query,
      { rcode, answers: answers.slice(0, count), authorities: [], additionals: [] },
      authoritative,
      true,
    )
  let fits = 0
  let tooMany = answers.length + 1
  while (tooMany - fits > 1) {
    const middle = (fits + tooMany) >> 1
    if (cut(middle).length <= limit) fits = middle
    else tooMany = middle
  }
  // All answers may fit once the other sections are left out; then nothing that was asked for is missing.
  return fits === answers.length
    ? encodePart(query, { ...reply, authorities: [], additionals: [] }, authoritative, false)
    : cut(fits)
}

function encodePart(query: Query, reply: Reply, authoritative: boolean, truncated: boolean): Buffer {
  const flags =
    codes[reply.rcode] |
    RECURSION_AVAILABLE |
    (query.recursionDesired ? RECURSION_DESIRED : 0) |
    (authoritative ? AUTHORITATIVE_ANSWER : 0) |
    (truncated ? TRUNCATED_RESPONSE : 0)
  return encode({
    type: 'response',
    id: query.id,
    flags,
    questions: [query.question],
    answers: reply.answers,
    authorities: reply.authorities,
    additionals: query.ednsSize === undefined ? reply.additionals : [...reply.additionals, optRecord],
  })
}

export const optRecord = {
  type: 'OPT',
  name: '.',
  udpPayloadSize: maxUdpAnswer,
  extendedRcode: 0,
  ednsVersion: 0,
  flags: 0,
  flag_do: false,
  options: [],
} as unknown as Answer

/** A reply of nothing but a header, to a message of which no more can be read. */
function bareReply(message: Buffer, rcode: ResponseCode): Buffer {
  const reply = Buffer.alloc(headerBytes)
  message.copy(reply, 0, 0, 2)
  reply.writeUInt8(0x80 | (message.readUInt8(2) & 0x79), 2) // QR, and the opcode and RD that were asked with
  reply.writeUInt8(0x80 | codes[rcode], 3)
  return reply
}
