import { isIP } from 'node:net'
import { EdgeMeshError } from '#shared/errors.ts'
import { offlineGraceRule, parseOfflineGrace } from '#shared/lifetimes.ts'
import { type LogLevel, logLevels } from '#shared/log.ts'
import { ports } from '#shared/ports.ts'
import { type FastPathMode, fastPathModes } from '#shared/pump/mode.ts'

export interface ServerAddress {
  host: string
  port: number
}

/** All that the sidecar is told by its environment; read in this file only. */
export interface SidecarConfig {
  podUid: string
  podName: string
  namespace: string
  podIPs: string[]
  hostIP: string | undefined
  node: string | undefined
  zone: string | undefined
  servers: ServerAddress[]
  tokenFile: string
  trustBundleFile: string
  /** The trust bundle itself, PEM, where the injector has put it into the environment; the file is not read then. */
  trustBundle: string | undefined
  trustDomain: string
  clusterDomain: string
  /** Keeps the last good catalogue between restarts. */
  stateFolder: string
  /** Keeps the key between restarts; must be memory-backed. Without it the key lives in the process only. */
  identityFolder: string | undefined
  resolvConf: string
  /** DNS servers for all that is no service; those of resolv.conf when there are none. */
  upstreamDns: string[]
  /** ClusterIPs that the rules of this pod leave alone (noproxy=edgemesh when it was injected). */
  ignoredServiceIps: string[]
  /** How long after their expiry certificates of peers are accepted while the server is away, in ms; 0 is never. */
  offlineGraceMs: number
  /** When bulk goes to the pump. */
  fastPath: FastPathMode
  logLevel: LogLevel
  adminPort: number
  /** How long connections may finish after SIGTERM, in ms. */
  drainMs: number
}

type Environment = Record<string, string | undefined>

/** Reads the environment; the first bad variable is one `bad-config` with its name, value and the reason. */
export function readConfig(env: Environment): SidecarConfig {
  const must = (name: string) => env[name] || fail(name, env[name], 'it must be set')
  return {
    podUid: must('POD_UID'),
    podName: must('POD_NAME'),
    namespace: must('POD_NAMESPACE'),
    podIPs: podIPsOf(must('POD_IPS')),
    hostIP: env.HOST_IP || undefined,
    node: env.NODE_NAME || undefined,
    zone: env.EDGEMESH_ZONE || undefined,
    servers: must('EDGEMESH_SERVER')
      .split(',')
      .map((text) => serverAddress(text.trim())),
    tokenFile: env.EDGEMESH_TOKEN_FILE || '/var/run/secrets/edgemesh/token',
    trustBundleFile: env.EDGEMESH_TRUST_BUNDLE_FILE || '/var/run/secrets/edgemesh/ca.crt',
    trustBundle: env.EDGEMESH_TRUST_BUNDLE || undefined,
    trustDomain: env.EDGEMESH_TRUST_DOMAIN || 'cluster.local',
    clusterDomain: env.EDGEMESH_CLUSTER_DOMAIN || 'cluster.local',
    stateFolder: env.EDGEMESH_STATE_DIR || '/var/lib/edgemesh',
    identityFolder: env.EDGEMESH_IDENTITY_DIR || undefined,
    resolvConf: env.EDGEMESH_RESOLV_CONF || '/etc/resolv.conf',
    upstreamDns: ipsOf('EDGEMESH_UPSTREAM_DNS', env.EDGEMESH_UPSTREAM_DNS ?? ''),
    ignoredServiceIps: ipsOf('EDGEMESH_IGNORED_SERVICE_IPS', env.EDGEMESH_IGNORED_SERVICE_IPS ?? ''),
    offlineGraceMs: offlineGrace(env.EDGEMESH_OFFLINE_GRACE || '0s'),
    fastPath: fastPathMode(env.EDGEMESH_FAST_PATH || 'auto'),
    logLevel: logLevel(env.EDGEMESH_LOG_LEVEL || 'info'),
    adminPort: wholeNumber('EDGEMESH_ADMIN_PORT', env, ports.sidecarAdmin, 1, 65_535),
    drainMs: 1_000 * wholeNumber('EDGEMESH_DRAIN_SECONDS', env, 25, 0, 3_600),
  }
}

function fail(name: string, value: string | undefined, reason: string): never {
  const shown = value === undefined || value === '' ? 'is not set' : `is "${value}"`
  throw new EdgeMeshError('bad-config', `Cannot start: ${name} ${shown}: ${reason}.`)
}

function podIPsOf(text: string): string[] {
  const addresses = text.split(',').map((a) => a.trim())
  const bad = addresses.find((a) => isIP(a) === 0)
  if (bad !== undefined || addresses.length > 2) fail('POD_IPS', text, 'it must be one or two IP addresses')
  return addresses
}

function ipsOf(name: string, list: string): string[] {
  const addresses = list
    .split(',')
    .map((a) => a.trim())
    .filter((a) => a !== '')
  if (addresses.some((a) => isIP(a) === 0)) fail(name, list, 'it must be a list of IP addresses')
  return addresses
}

function offlineGrace(text: string): number {
  return parseOfflineGrace(text) ?? fail('EDGEMESH_OFFLINE_GRACE', text, `it ${offlineGraceRule}`)
}

function fastPathMode(text: string): FastPathMode {
  const mode = fastPathModes.find((m) => m === text)
  return mode ?? fail('EDGEMESH_FAST_PATH', text, `it must be one of ${fastPathModes.join(', ')}`)
}

function logLevel(text: string): LogLevel {
  const level = logLevels.find((l) => l === text)
  return level ?? fail('EDGEMESH_LOG_LEVEL', text, `it must be one of ${logLevels.join(', ')}`)
}

function wholeNumber(name: string, env: Environment, byDefault: number, min: number, max: number): number {
  const text = env[name]
  if (text === undefined || text === '') return byDefault
  const number = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN
  return number >= min && number <= max
    ? number
    : fail(name, text, `it must be a number from ${min} to ${max}`)
}

/** `host`, `host:port`, `1.2.3.4:20004` or `[fd00::1]:20004`. */
function serverAddress(text: string): ServerAddress {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^\s:/[\]]+))(?::(\d{1,5}))?$/.exec(text)
  const host = match?.[1] ?? match?.[2]
  const port = match?.[3] === undefined ? ports.server : Number(match[3])
  if (host === undefined || port < 1 || port > 65_535) {
    fail('EDGEMESH_SERVER', text, 'each server must be host:port, IPv6 in brackets')
  }
  return { host, port }
}
