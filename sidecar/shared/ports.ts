/** Every fixed port of the system, in one place. All TCP but DNS, which is both. */
export const ports = {
  /** The intercepting proxy, on the pod's loopback; EdgeMesh's number, so that operators know it. */
  interceptor: 40001,
  /** The DNS resolver, on the pod's loopback; the rules redirect port 53 to it. */
  dns: 40053,
  /** No listener: datagrams of the sidecar to these ports change the rules for an ignored service. */
  reclaim: 40003,
  release: 40004,
  /** The tunnel endpoint of a sidecar: mTLS + HTTP/2 CONNECT, on every address of the pod. */
  tunnel: 20006,
  /** Health and metrics of a sidecar, on every address of the pod; drain and quit from loopback only. */
  sidecarAdmin: 20007,
  /** The server's one public port: control channel and relay joins. */
  server: 20004,
  /** Health and metrics of the server. */
  serverAdmin: 20005,
} as const

/** The uid that the sidecar runs as; the rules let its packets pass. Istio and others use the same number. */
export const SIDECAR_UID = 1337

/** What the sidecar itself serves in a pod; neither an app nor a peer is taken there through the mesh. */
export const sidecarPorts: readonly number[] = [
  ports.interceptor,
  ports.dns,
  ports.tunnel,
  ports.sidecarAdmin,
]
