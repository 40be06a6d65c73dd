import { hostname } from 'node:os'
import { Command, InvalidArgumentError, Option } from 'commander'
import { type LogLevel, logLevels } from '#shared/log.ts'
import { ports } from '#shared/ports.ts'

export interface ServerConfig {
  port: number
  adminPort: number
  /** Holds the CA. */
  stateDir: string
  trustDomain: string
  /** Folder of Kubernetes manifests. */
  manifests: string
  /** JWKS file of the keys that sign pod tokens. */
  tokenKeys: string
  tokenIssuer: string
  /** In ms. */
  leafLifetime: number
  replica: string
  /** How long joined pairs may finish after SIGTERM, in ms. */
  drain: number
  logLevel: LogLevel
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
    .addOption(option('--state-dir <folder>', 'keeps the CA: ca.crt, ca.key').makeOptionMandatory())
    .addOption(option('--manifests <folder>', 'Kubernetes manifests to serve, watched').makeOptionMandatory())
    .addOption(option('--token-keys <file>', 'JWKS of the keys that sign pod tokens').makeOptionMandatory())
    .addOption(option('--token-issuer <url>', 'issuer that pod tokens must name').makeOptionMandatory())
    .addOption(option('--trust-domain <name>', 'names every identity', domain).default('cluster.local'))
    .addOption(
      option('--leaf-lifetime <time>', 'of pod certificates: 24h, 90m, 30s', duration).default(
        86_400_000,
        '24h',
      ),
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
    .addOption(option('--log-level <level>', 'how much to say').choices(logLevels).default('info'))
    .showHelpAfterError('(see --help)')
    .allowExcessArguments(false)
    .action(run)
}

function port(text: string): number {
  const number = /^\d{1,5}$/.test(text) ? Number(text) : 65_536
  if (number > 65_535) throw new InvalidArgumentError('It must be a port number.')
  return number
}

const units: Record<string, number> = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** `90s`, `15m`, `24h`, `7d` to ms. */
export function duration(text: string): number {
  const match = /^(\d{1,6})([smhd])$/.exec(text)
  const ms = Number(match?.[1]) * (units[match?.[2] ?? ''] ?? 0)
  if (!(ms > 0)) throw new InvalidArgumentError('It must be a time like 30s, 90m, 24h or 7d.')
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
