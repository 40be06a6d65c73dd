import { isIP } from 'node:net'
import {
  dictionary,
  flag,
  integer,
  list,
  type Of,
  object,
  oneOf,
  optional,
  type Shape,
  text,
} from './shape.ts'

/** Kubernetes names: DNS labels and subdomains, at most 253 characters. */
export const kubernetesName: Shape<string> = text(253, /^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$/)
export const podUid: Shape<string> = text(63, /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/)
export const ipAddress: Shape<string> = (value, path) => {
  const address = text(45)(value, path)
  if (isIP(address) === 0) text(0, /an IP address/)('x', path)
  return address
}
const portNumber = integer(1, 65_535)
/** `namespace/name`, the identity of a service everywhere on the wire. */
export const serviceId: Shape<string> = text(507, /^[-a-z0-9.]+\/[-a-z0-9.]+$/)

const servicePort = object({
  /** Empty where the Service has one unnamed port, as in Kubernetes. */
  name: text(63),
  port: portNumber,
  protocol: oneOf('TCP', 'UDP', 'SCTP'),
})
export type ServicePort = Of<typeof servicePort>

/** One service of the compact index: all that DNS and interception need, without endpoints. */
export const serviceEntry = object({
  namespace: kubernetesName,
  name: kubernetesName,
  kind: oneOf('clusterIP', 'headless', 'externalName'),
  /** One per IP family; empty unless `kind` is clusterIP. */
  clusterIPs: list(ipAddress, 2),
  externalName: optional(text(253)),
  ports: list(servicePort, 1_000),
  /** spec.sessionAffinity ClientIP with its timeout in seconds; 0 is none. */
  affinitySeconds: integer(0, 86_400),
  /** spec.internalTrafficPolicy: Local. */
  localOnly: flag,
  /** spec.trafficDistribution asks for near endpoints (zone hints are honoured). */
  preferClose: flag,
  /** Label noproxy=edgemesh: the mesh leaves this service alone. */
  bypass: flag,
  balancer: oneOf('round-robin', 'least-request'),
})
export type ServiceEntry = Of<typeof serviceEntry>

/** One endpoint (a pod, mostly) of a service, merged from its EndpointSlices. */
export const endpoint = object({
  /** Its IPs, at most one per family. */
  addresses: list(ipAddress, 2),
  /** targetRef.uid; absent for endpoints that are not pods. */
  podUid: optional(podUid),
  podName: optional(kubernetesName),
  hostname: optional(text(63)),
  node: optional(text(253)),
  zone: optional(text(253)),
  /** hints.forZones. */
  forZones: optional(list(text(253), 16)),
  ready: flag,
  serving: flag,
  terminating: flag,
  /** Service port name -> the endpoint's own port number (named targetPorts are resolved). */
  ports: dictionary(portNumber, 1_000),
  /** Whether the pod has a sidecar: if so it is dialled through its tunnel only, never in the clear. */
  sidecar: flag,
})
export type Endpoint = Of<typeof endpoint>

export function idOf(service: { namespace: string; name: string }): string {
  return `${service.namespace}/${service.name}`
}
