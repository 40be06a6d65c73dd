import { congestionControlOf, type Flight, flightOf, setCongestionControl } from './tcp.ts'

/** A path that has been faster than this is inside one site, or one node; in ms. */
const nearMs = 1
/** The one that every kernel has, and allows to everybody. */
const unpaced = 'reno'

/**
 * Whether a connection with a full send buffer is paced in vain. BBR sends by a timer, at the rate that it has measured: that
 * is for queues on a long path. Inside a site it holds a sender to a third less than it could, at the same cpu.
 */
export function isPacedInVain(flight: Pick<Flight, 'minRttMs'>, congestionControl: string): boolean {
  return congestionControl === 'bbr' && flight.minRttMs < nearMs
}

/** To be called when a connection's send buffer is full for the first time. */
export function unpace(fd: number): void {
  const flight = flightOf(fd)
  if (flight !== undefined && isPacedInVain(flight, congestionControlOf(fd)))
    setCongestionControl(fd, unpaced)
}

/** Connections that this socket accepts come from the same pod: no path is nearer. */
export function unpaceAccepted(listeningFd: number): void {
  if (isPacedInVain({ minRttMs: 0 }, congestionControlOf(listeningFd)))
    setCongestionControl(listeningFd, unpaced)
}
