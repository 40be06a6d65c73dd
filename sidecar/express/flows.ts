import { isIP } from 'node:net'
import { type Endpoint, idOf, type ServiceEntry } from '#shared/catalogue.ts'
import { sidecarPorts } from '#shared/ports.ts'
import { eligible, keyOf } from '../services/balancer.ts'
import { type Destination, decideDestination } from '../services/destination.ts'
import { authorityOf } from '../tunnel/connect.ts'
import { flowKeyOf, socketAddress } from './address.ts'
import type { Flow, Target } from './messages.ts'

export interface FlowView {
  self: { podUid: string; podIPs: readonly string[]; node: string | undefined; zone: string | undefined }
  byAddress: (address: string) => ServiceEntry | undefined
  endpointsOf: (id: string) => readonly Endpoint[] | undefined
}

export interface FlowDecision {
  /** Id of the service that the destination belongs to. */
  service?: string
  /** Undefined for what the main thread must carry itself. */
  flow?: Flow
}

/**
 * How the worker may carry connections to a destination by itself: in the clear or by the lanes to the peer, where
 * nothing but turns decides between the endpoints.
 */
export function flowOf(destination: Destination, view: FlowView): FlowDecision {
  const { self } = view
  const own = { podIPs: self.podIPs, ownPorts: sidecarPorts }
  const decision = decideDestination(destination, view.byAddress, own)
  if (decision.kind === 'reset') return {}
  const asked = authorityOf(destination.address, destination.port)
  if (decision.kind === 'passthrough') {
    const about = { direction: 'outbound', destination: asked, endpoint: asked, route: 'plain' } as const
    const address = socketAddress(destination)
    return address === undefined ? {} : { flow: { targets: [{ key: '', address, about }] } }
  }
  const { service, portName } = decision
  const id = idOf(service)
  const endpoints = eligible(service, view.endpointsOf(id) ?? [], self)
    .filter((e) => e.ports[portName] !== undefined)
    .sort((a, b) => (keyOf(a) < keyOf(b) ? -1 : 1))
  const turnsOnly = service.affinitySeconds === 0 && service.balancer !== 'least-request'
  const known = { destination: asked, service: `${id}:${destination.port}` }
  const targets = endpoints.flatMap((e) => targetOf(e, portName, destination, known, self.podUid) ?? [])
  if (!turnsOnly || targets.length === 0 || targets.length < endpoints.length) return { service: id }
  return { service: id, flow: { targets } }
}

/** An endpoint with a sidecar is never dialled in the clear. */
function targetOf(
  endpoint: Endpoint,
  portName: string,
  destination: Destination,
  known: { destination: string; service: string },
  ownUid: string,
): Target | undefined {
  const { podUid, addresses, ports, sidecar } = endpoint
  const isLocal = podUid === ownUid
  const family = isIP(destination.address)
  const host = addresses.find((a) => isIP(a) === family) ?? addresses[0] ?? ''
  const port = ports[portName] ?? 0
  const address = socketAddress({ address: host, port })
  if (address === undefined) return undefined
  const route = isLocal ? 'local' : 'plain'
  const peer = !isLocal && sidecar && podUid !== undefined ? { peer: podUid } : {}
  const uid = podUid === undefined ? {} : { podUid }
  return {
    key: keyOf(endpoint),
    address,
    ...peer,
    about: { direction: 'outbound', ...known, endpoint: authorityOf(host, port), ...uid, route },
  }
}

/** What peers may reach of this pod by lanes: what each is called, by flow key. */
export function servedBy(podIPs: readonly string[], declaredPorts: readonly number[]): Map<string, string> {
  const served = new Map<string, string>()
  for (const address of podIPs) {
    for (const port of declaredPorts) {
      const bytes = sidecarPorts.includes(port) ? undefined : socketAddress({ address, port })
      if (bytes !== undefined)
        served.set(flowKeyOf(bytes, bytes.length === 16 ? 4 : 6), authorityOf(address, port))
    }
  }
  return served
}
