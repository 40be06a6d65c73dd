import { bareSocket, close } from './libc.ts'
import { type Flight, flightOf, sendBufferOf, setMaxPacingRate, setSendBuffer } from './tcp.ts'

/** What a send buffer is raised to, in bytes: with the kernel's overhead it carries some 350 Mbit/s over 100 ms. */
const wideBytes = 3 * 1024 * 1024
/** Nearer peers are served well by what the kernel sizes itself; in ms. */
const farMs = 60
/** What is measured as less than this is as good as nothing; in ms. */
const shortestMs = 0.01
/** Of the full buffer: a buffer that is full of what the peer does not take has little on its way. */
const busyShare = 0.5

/**
 * Whether it is the send buffer that limits a connection: it is far, its buffer is full, and most of that is on its
 * way. Then `wide`, what this kernel would grant, must be more than what there is.
 */
export function isTooNarrow(flight: Flight, buffer: number, wide: number): boolean {
  return flight.rttMs >= farMs && flight.bytes >= buffer * busyShare && wide > buffer
}

let granted: number | undefined

/** How large a send buffer this kernel grants who asks, in its own count. It cannot be asked back once it is less. */
export function grantedBytes(): number {
  if (granted !== undefined) return granted
  const fd = bareSocket()
  if (fd < 0) return 0
  setSendBuffer(fd, wideBytes)
  granted = sendBufferOf(fd)
  close(fd)
  return granted
}

/**
 * To be called when a connection's send buffer is full. The kernel's own sizing stops at tcp_wmem (4 MB, of which a
 * quarter is overhead), and a pod may not change that; but it may ask for more for one socket. True when it has.
 */
export function widen(fd: number): boolean {
  const flight = flightOf(fd)
  if (flight === undefined || !isTooNarrow(flight, sendBufferOf(fd), grantedBytes())) return false
  setSendBuffer(fd, wideBytes)
  smooth(fd)
  return true
}

/**
 * To be called now and then for a connection that was widened. A sender that is bounded by its buffer sends what an acknowledgement
 * makes room for at once, and a burst stays one, each time around; small talk waits for it to pass through all that is between the
 * two apps. At no more than a buffer for each round trip, with the kernel's overhead counted as bytes, it comes as a stream.
 */
export function smooth(fd: number): void {
  const flight = flightOf(fd)
  if (flight !== undefined) setMaxPacingRate(fd, rateFor(sendBufferOf(fd), flight))
}

/** A buffer for each round trip, in bytes a second; by the shortest of late, as the path may have become shorter. */
export function rateFor(buffer: number, { minRttMs }: Pick<Flight, 'minRttMs'>): number {
  return (buffer * 1_000) / Math.max(minRttMs, shortestMs)
}
