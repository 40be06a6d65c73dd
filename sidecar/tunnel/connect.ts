import type { ErrorCode } from '#shared/errors.ts'

/**
 * How the dialled sidecar answers a CONNECT, as HBONE does: 200 only once the upstream is connected; every other
 * outcome has a status of its own, which the dialler turns back into a code.
 */
export type ConnectFailure = Extract<
  ErrorCode,
  'forbidden' | 'refused' | 'timeout' | 'unreachable' | 'limit' | 'stopping'
>

const statuses: Record<ConnectFailure, number> = {
  forbidden: 401,
  limit: 429,
  unreachable: 502,
  refused: 503,
  timeout: 504,
  stopping: 421,
}

export function statusOf(failure: ConnectFailure): number {
  return statuses[failure]
}

/** The failure that a status stands for; an unknown status counts as unreachable. */
export function failureOf(status: number): ConnectFailure {
  const known = Object.entries(statuses).find(([, s]) => s === status)
  return (known?.[0] as ConnectFailure | undefined) ?? 'unreachable'
}

export type InboundDecision = { host: string; port: number } | { refuse: ConnectFailure; why: string }

/**
 * Decides what a CONNECT may reach: this pod's own IPs at ports that the pod declares, never our own.
 * `authority` is `ip:port` or `[ip]:port`.
 */
export function decideInbound(
  method: string | undefined,
  authority: string | undefined,
  self: { podIPs: readonly string[]; declaredPorts: readonly number[]; ownPorts: readonly number[] },
): InboundDecision {
  if (method !== 'CONNECT') return { refuse: 'forbidden', why: 'only CONNECT is served' }
  const match = /^(?:\[([0-9a-fA-F:.]{2,45})\]|([0-9.]{7,15})):([1-9]\d{0,4})$/.exec(authority ?? '')
  const host = match?.[1] ?? match?.[2]
  const port = Number(match?.[3])
  if (host === undefined || port > 65_535) return { refuse: 'forbidden', why: 'the authority is not ip:port' }
  if (!self.podIPs.includes(host)) return { refuse: 'forbidden', why: 'the address is not this pod' }
  if (self.ownPorts.includes(port)) return { refuse: 'forbidden', why: 'the port is the sidecar itself' }
  if (!self.declaredPorts.includes(port))
    return { refuse: 'forbidden', why: 'the pod does not declare this port' }
  return { host, port }
}

export function authorityOf(address: string, port: number): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`
}
