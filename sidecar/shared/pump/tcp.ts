import { getsockopt, IPPROTO_TCP, SO_KEEPALIVE, SOL_SOCKET, setsockopt, TCP_NODELAY } from './libc.ts'

// What a proxy asks of a TCP connection, and what it is told of one: tcp(7), socket(7), linux/tcp.h.

const SO_SNDBUF = 7
const SO_MAX_PACING_RATE = 47
const TCP_KEEPIDLE = 4
const TCP_KEEPINTVL = 5
const TCP_KEEPCNT = 6
const TCP_INFO = 11
const TCP_CONGESTION = 13
const TCP_USER_TIMEOUT = 18
const TCP_NOTSENT_LOWAT = 25

const optionLength = new Uint32Array(1)

/**
 * A connection that many streams share: the kernel keeps little more than what is on its way, so that what has to be
 * sent soon does not wait behind bulk.
 */
export function setShared(fd: number, unsentBytes: number): void {
  const value = Buffer.alloc(4)
  value.writeInt32LE(unsentBytes)
  setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, value, value.length)
}

/** Makes the kernel give up a TCP connection whose peer has been silent for about `seconds`. */
export function setDeadPeerTimeout(fd: number, seconds: number): void {
  const set = (level: number, name: number, value: number) => {
    const bytes = Buffer.alloc(4)
    bytes.writeInt32LE(value)
    setsockopt(fd, level, name, bytes, bytes.length)
  }
  set(SOL_SOCKET, SO_KEEPALIVE, 1)
  set(IPPROTO_TCP, TCP_NODELAY, 1)
  set(IPPROTO_TCP, TCP_KEEPIDLE, Math.ceil(seconds / 2))
  set(IPPROTO_TCP, TCP_KEEPINTVL, Math.ceil(seconds / 4))
  set(IPPROTO_TCP, TCP_KEEPCNT, 2)
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, seconds * 1_000)
}

/** A state of a TCP connection, from include/net/tcp_states.h. */
export const TCP_CLOSE = 7

const tcpInfo = Buffer.alloc(152)

/** 0 for what is no TCP socket. */
export function tcpState(fd: number): number {
  optionLength[0] = 1
  return getsockopt(fd, IPPROTO_TCP, TCP_INFO, tcpInfo, optionLength) === 0 ? tcpInfo.readUInt8(0) : 0
}

/** What a TCP connection has on its way. */
export interface Flight {
  /** Sent and not acknowledged, in bytes. */
  bytes: number
  rttMs: number
  /** The fastest of late, so without queues. */
  minRttMs: number
}

/** From struct tcp_info of linux/tcp.h; undefined for what is no TCP socket. */
export function flightOf(fd: number): Flight | undefined {
  optionLength[0] = tcpInfo.length
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, tcpInfo, optionLength) !== 0) return undefined
  const at = (offset: number) => tcpInfo.readUInt32LE(offset)
  const rttUs = at(68)
  const minRttUs = optionLength[0] < tcpInfo.length ? rttUs : at(148) // a kernel before 4.9 tells less
  return { bytes: at(16) * at(24), rttMs: rttUs / 1e3, minRttMs: minRttUs / 1e3 }
}

const number = Buffer.alloc(4)

/** As the kernel counts: with its overhead, which is about a third. 0 for what is no socket. */
export function sendBufferOf(fd: number): number {
  optionLength[0] = number.length
  return getsockopt(fd, SOL_SOCKET, SO_SNDBUF, number, optionLength) === 0 ? number.readInt32LE(0) : 0
}

/** The kernel doubles it for its overhead, grants what net.core.wmem_max allows, and sizes it no more by itself. */
export function setSendBuffer(fd: number, bytes: number): void {
  number.writeInt32LE(bytes)
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, number, number.length)
}

/** Of 32 bits, one less than what stands for no bound. */
const maxRate = 0xffff_fffe

/** The kernel sends no faster, and spreads what it sends; in bytes a second. */
export function setMaxPacingRate(fd: number, bytesPerSecond: number): void {
  number.writeUInt32LE(Math.min(Math.round(bytesPerSecond), maxRate))
  setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, number, number.length)
}

const name = Buffer.alloc(16)

/** The name of a TCP connection's congestion control; empty for what is no TCP socket. */
export function congestionControlOf(fd: number): string {
  optionLength[0] = name.length
  if (getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, optionLength) !== 0) return ''
  return name.toString('latin1').replace(/\0.*/s, '')
}

/** Stays as it is where the kernel does not have it, or does not allow it. */
export function setCongestionControl(fd: number, congestionControl: string): void {
  const value = Buffer.from(congestionControl)
  setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, value, value.length)
}
