import type { Address } from './wire.ts'

/**
 * How what is between a pod and the server maps one inside port (RFC 4787): not at all, to the same outside port
 * whatever is dialled, or to another one for each destination.
 */
export type Mapping = 'none' | 'independent' | 'dependent'

export interface Nat {
  mapping: Mapping
  portPreserved: boolean
  /** Whether the mapping was seen from two places, and not only guessed by the port. */
  proven: boolean
}

/** A connection as its two ends know it: the pod's port, and where the server saw it come from. */
export interface Sighting {
  localPort: number
  observed: Address
}

/**
 * What sightings say; all of one local port, to different places. One alone is a guess: what keeps the port mostly does
 * so for every destination, and what changes it, like a carrier's NAT, mostly does so for each.
 */
export function natOf(sightings: readonly Sighting[], podIPs: readonly string[]): Nat | undefined {
  const [first, ...others] = sightings
  if (first === undefined) return undefined
  const { localPort, observed } = first
  const portPreserved = observed.port === localPort
  if (portPreserved && podIPs.includes(observed.address))
    return { mapping: 'none', portPreserved, proven: true }
  const same = others.every(
    (s) => s.observed.address === observed.address && s.observed.port === observed.port,
  )
  if (others.length > 0) return { mapping: same ? 'independent' : 'dependent', portPreserved, proven: true }
  return { mapping: portPreserved ? 'independent' : 'dependent', portPreserved, proven: false }
}

/** Of a socket; an IPv4 address as such also where the socket is of both families. */
export function remoteOf(socket: {
  remoteAddress?: string | undefined
  remotePort?: number | undefined
}): Address | undefined {
  const { remoteAddress, remotePort } = socket
  if (remoteAddress === undefined || remotePort === undefined) return undefined
  return { address: remoteAddress.replace(/^::ffff:(?=\d+\.)/, ''), port: remotePort }
}

export function natLabelsOf(nat: Nat): { mapping: string; port_preserved: string; proven: string } {
  return { mapping: nat.mapping, port_preserved: String(nat.portPreserved), proven: String(nat.proven) }
}
