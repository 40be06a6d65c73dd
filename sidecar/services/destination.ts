import type { ServiceEntry } from '#shared/catalogue.ts'

export interface Destination {
  address: string
  port: number
}

/** What has happened to a connection before it came here, with nothing read of it. */
export interface Detour {
  /** How long it has waited, in ms. */
  waitedMs?: number
  /** Key of the endpoint whose turn it was. */
  turn?: string
}

export type DestinationDecision =
  /** A service of the mesh; `portName` is the service port's name. */
  | { kind: 'service'; service: ServiceEntry; portName: string }
  /** Not ours: dialled as the app asked, so that what kube-proxy knows still works. */
  | { kind: 'passthrough' }
  | { kind: 'reset'; why: string }

/** What a captured connection is for, by the address and port that the app dialled. */
export function decideDestination(
  destination: Destination,
  lookup: (address: string) => ServiceEntry | undefined,
  self: { podIPs: readonly string[]; ownPorts: readonly number[] },
): DestinationDecision {
  const { address, port } = destination
  if (isLoopback(address) || (self.podIPs.includes(address) && self.ownPorts.includes(port))) {
    return { kind: 'reset', why: 'the destination is the sidecar itself' } // istio #14242: it would loop for ever
  }
  const service = lookup(address)
  if (service === undefined || service.bypass) return { kind: 'passthrough' }
  const match = service.ports.find((p) => p.port === port && p.protocol === 'TCP')
  if (match === undefined) return { kind: 'reset', why: `the service has no TCP port ${port}` }
  return { kind: 'service', service, portName: match.name }
}

function isLoopback(address: string): boolean {
  return address.startsWith('127.') || address === '::1' || address.startsWith('::ffff:127.')
}
