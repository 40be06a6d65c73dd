import { hostname } from 'node:os'
import { Command, InvalidArgumentError, Option } from 'commander'
import { leafLifetimeBounds, parseDuration } from '#shared/lifetimes.ts'
import { type LogLevel, logLevels } from '#shared/log.ts'
import { ports } from '#shared/ports.ts'
import { type FastPathMode, fastPathModes } from '#shared/pump/mode.ts'
import type { ReplicaAddress } from './replicas/directory.ts'

export interface ServerConfig {
  port: number
  adminPort: number
  trustDomain: string
  /** Where services, pods, token verification and the CA come from. */
  backend: FolderBackend | KubernetesBackend
  /** In ms. */
  leafLifetime: number
  /** The most that a pod or namespace may ask for, in ms. */
  maxLeafLifetime: number
  replica: string
  /** How long joined pairs may finish after SIGTERM, in ms. */
  drain: number
  /** When bulk goes to the pump. */
  fastPath: FastPathMode
  logLevel: LogLevel
}

export interface FolderBackend {
  kind: 'folder'
  /** Holds the CA. */
  stateDir: string
  /** Folder of Kubernetes manifests. */
  manifests: string
  /** JWKS file of the keys that sign pod tokens. */
  tokenKeys: string
  tokenIssuer: string
  /** Other replicas, by name. */
  peers: ReadonlyMap<string, ReplicaAddress>
}

export interface KubernetesBackend {
  kind: 'kubernetes'
  kubeconfig?: string
  /** Where the server itself runs. */
  namespace: string
  service: string
  clusterDomain: string
  publicAddress: string[]
  serviceCidrs: string[]
  /** The server runs with host network: its nodes' addresses are its own. */
  hostNetwork: boolean
  /** In ms. */
  caLifetime: number
}

/** What commander reads: the options of both backends, flat. */
interface Options extends Omit<ServerConfig, 'backend'>, Partial<Omit<FolderBackend, 'kind' | 'peers'>> {
  peers: ReadonlyMap<string, ReplicaAddress>
  source: 'folder' | 'kubernetes'
  kubeconfig?: string
  namespace: string
  service: string
  clusterDomain: string
  publicAddress: string[]
  serviceCidrs: string[]
  hostNetwork: boolean
  caLifetime: number
}

/** Options from the command line, each with its environment variable. Commander names what is wrong with one. */
export function serverCommand(run: (config: ServerConfig) => Promise<void>): Command {
  const option = (flags: string, text: string, parse?: (text: string) => unknown) => {
    const made = new Option(flags, text)
    made.env(`EDGEMESH_${made.name().toUpperCase().replaceAll('-', '_')}`)
    return parse === undefined ? made : made.argParser(parse)
  }
  return new Command('edgemesh-server')
    .description(
      'EdgeMesh server: control channel, certificate authority, service catalogue and relay on one port.',
    )
    .addOption(option('--port <number>', 'the one public port', port).default(ports.server))
    .addOption(option('--admin-port <number>', 'health and metrics', port).default(ports.serverAdmin))
    .addOption(
      option('--source <kind>', 'where services, pods, token verification and the CA come from')
        .choices(['folder', 'kubernetes'])
        .default('folder'),
    )
    .addOption(option('--state-dir <folder>', 'folder: keeps the CA: ca.crt, ca.key'))
    .addOption(option('--manifests <folder>', 'folder: Kubernetes manifests to serve, watched'))
    .addOption(option('--token-keys <file>', 'folder: JWKS of the keys that sign pod tokens'))
    .addOption(option('--token-issuer <url>', 'folder: issuer that pod tokens must name'))
    .addOption(
      option(
        '--peers <list>',
        'folder: other replicas, name=host:port with commas; all share the state folder',
        peers,
      ).default(new Map(), 'none'),
    )
    .addOption(option('--kubeconfig <file>', "kubernetes: by default the pod's service account"))
    .addOption(option('--namespace <name>', 'kubernetes: of the server itself').default('edgemesh-system'))
    .addOption(option('--service <name>', 'kubernetes: Service of the server').default('edgemesh-server'))
    .addOption(
      option('--cluster-domain <name>', 'kubernetes: of service names', domain).default('cluster.local'),
    )
    .addOption(
      option(
        '--public-address <list>',
        'kubernetes: host:port of the server, from everywhere; by default found out',
        addresses,
      ).default([], 'from the Service and the nodes'),
    )
    .addOption(
      option('--service-cidrs <list>', 'kubernetes: CIDRs of clusterIPs', list).default([], 'found out'),
    )
    .addOption(option('--host-network', "kubernetes: the server has its nodes' addresses").default(false))
    .addOption(
      option('--ca-lifetime <time>', 'kubernetes: of a root; replaced in its last third', duration).default(
        730 * 86_400_000,
        '730d',
      ),
    )
    .addOption(option('--trust-domain <name>', 'names every identity', domain).default('cluster.local'))
    .addOption(
      option('--leaf-lifetime <time>', 'of pod certificates: 24h, 90m, 30s', duration).default(
        86_400_000,
        '24h',
      ),
    )
    .addOption(
      option(
        '--max-leaf-lifetime <time>',
        'the most that an annotation of a pod or namespace may ask for',
        duration,
      ).default(leafLifetimeBounds.max, '90d'),
    )
    .addOption(
      option('--replica <name>', 'of this server, in tickets', replica).default(ownName(), 'the host name'),
    )
    .addOption(
      option('--drain <time>', 'for relayed connections to finish at the end', duration).default(
        10_000,
        '10s',
      ),
    )
    .addOption(
      option('--fast-path <mode>', 'when bulk leaves JavaScript; for tests')
        .choices(fastPathModes)
        .default('auto'),
    )
    .addOption(option('--log-level <level>', 'how much to say').choices(logLevels).default('info'))
    .showHelpAfterError('(see --help)')
    .allowExcessArguments(false)
    .action((options: Options, command: Command) => run(configOf(options, command)))
}

function configOf(options: Options, command: Command): ServerConfig {
  const { port, adminPort, trustDomain, leafLifetime, maxLeafLifetime } = options
  const { replica, drain, fastPath, logLevel } = options
  return {
    ...{ port, adminPort, trustDomain, leafLifetime, maxLeafLifetime, replica, drain, fastPath, logLevel },
    backend: options.source === 'folder' ? folderOf(options, command) : kubernetesOf(options),
  }
}

function folderOf(options: Options, command: Command): FolderBackend {
  const must = (flag: string, value: string | undefined): string =>
    value ?? command.error(`error: required option '--${flag}' not specified`)
  return {
    kind: 'folder',
    stateDir: must('state-dir <folder>', options.stateDir),
    manifests: must('manifests <folder>', options.manifests),
    tokenKeys: must('token-keys <file>', options.tokenKeys),
    tokenIssuer: must('token-issuer <url>', options.tokenIssuer),
    peers: options.peers,
  }
}

function kubernetesOf(options: Options): KubernetesBackend {
  const { namespace, service, clusterDomain, publicAddress, serviceCidrs, hostNetwork, caLifetime } = options
  return {
    kind: 'kubernetes',
    ...(options.kubeconfig === undefined ? {} : { kubeconfig: options.kubeconfig }),
    ...{ namespace, service, clusterDomain, publicAddress, serviceCidrs, hostNetwork, caLifetime },
  }
}

function list(text: string): string[] {
  return text
    .split(',')
    .map((s) => s.trim())
    .filter((s) => s !== '')
}

function addresses(text: string): string[] {
  const bad = list(text).find((a) => !/^(\[[0-9a-f:]+\]|[a-zA-Z0-9.-]+):\d{1,5}$/.test(a))
  if (bad === undefined) return list(text)
  throw new InvalidArgumentError(`"${bad}" is not host:port.`)
}

/** `b=10.0.0.2:20004,c=[fd00::3]:20004`. */
export function peers(text: string): ReadonlyMap<string, ReplicaAddress> {
  return new Map(
    list(text).map((one) => {
      const match = /^([a-z0-9-]{1,63})=(?:\[([0-9a-f:.]+)\]|([a-zA-Z0-9.-]+)):(\d{1,5})$/.exec(one)
      const [, name = '', v6, other = '', digits = ''] = match ?? []
      if (match === null) throw new InvalidArgumentError(`"${one}" is not name=host:port.`)
      return [name, { host: v6 ?? other, port: port(digits) }]
    }),
  )
}

function port(text: string): number {
  const number = /^\d{1,5}$/.test(text) ? Number(text) : 65_536
  if (number > 65_535) throw new InvalidArgumentError('It must be a port number.')
  return number
}

/** `90s`, `15m`, `24h`, `7d` to ms. */
export function duration(text: string): number {
  const ms = parseDuration(text)
  if (!ms) throw new InvalidArgumentError('It must be a time like 30s, 90m, 24h or 7d.')
  return ms
}

function domain(text: string): string {
  if (/^[a-z0-9]([-a-z0-9.]{0,200}[a-z0-9])?$/.test(text)) return text
  throw new InvalidArgumentError('It must be a domain name in lower case.')
}

function replica(text: string): string {
  if (/^[a-z0-9-]{1,63}$/.test(text)) return text
  throw new InvalidArgumentError('It must be a DNS label.')
}

function ownName(): string {
  return (
    hostname()
      .toLowerCase()
      .replaceAll(/[^a-z0-9-]/g, '-')
      .slice(0, 63) || 'server'
  )
}
