import { readFileSync } from 'node:fs'
import { BlockList, isIP } from 'node:net'
import { release } from 'node:os'
import { Command, CommanderError, Option } from 'commander'
import { codeOf, EdgeMeshError, sentenceOf } from '#shared/errors.ts'
import { parseResolvConf } from '../dns/resolv-conf.ts'
import type { Destination } from '../services/destination.ts'
import type { BackendName } from './backend.ts'
import { backendNames } from './backend.ts'
import { cleanup, findBackend, install, preview } from './install.ts'
import { mayBindToDevice } from './loopback.ts'
import { probeCommand, probeKernel } from './probe.ts'
import { byFamily, type Capture } from './rules.ts'

interface InitOptions {
  serviceCidrs?: string
  ignoredServiceIps: string
  excludedCidrs: string
  excludedPorts: string
  resolvConf: string
  backend: BackendName | 'auto'
  dryRun: boolean
  json: boolean
  probe: boolean
}

type Environment = Record<string, string | undefined>

/** `init` and `cleanup` of sidecar/main.ts; returns the exit code. Never leaves rules behind when it fails. */
export async function runInit(argv: readonly string[], env: Environment): Promise<number> {
  const program = new Command('edgemesh-sidecar').exitOverride().showHelpAfterError()
  addInit(program, env)
  program
    .command('cleanup')
    .description('removes every EDGE-MESH rule and chain from this network namespace')
    .option('--json', 'prints one JSON object', false)
    .action(async ({ json }: { json: boolean }) => {
      const removed = await cleanup()
      say(
        json,
        { removed },
        removed.length === 0 ? 'Nothing to remove.' : `Removed the rules (${removed.join(', ')}).`,
      )
    })
  try {
    await program.parseAsync(argv, { from: 'user' })
    return 0
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2
    console.error(sentenceOf(error))
    return 1
  }
}

function addInit(program: Command, env: Environment): void {
  const backend = new Option('--backend <name>', 'iptables back end ($EDGEMESH_IPTABLES_BACKEND)')
    .choices(['auto', ...backendNames])
    .default(env.EDGEMESH_IPTABLES_BACKEND || 'auto')
  program
    .command('init')
    .description(
      'writes the EDGE-MESH rules into this network namespace, verifies them and probes the kernel',
    )
    .option(
      '--service-cidrs <list>',
      'service CIDRs, comma separated ($EDGEMESH_SERVICE_CIDRS)',
      env.EDGEMESH_SERVICE_CIDRS,
    )
    .option(
      '--ignored-service-ips <list>',
      'clusterIPs to leave alone ($EDGEMESH_IGNORED_SERVICE_IPS)',
      env.EDGEMESH_IGNORED_SERVICE_IPS ?? '',
    )
    .option(
      '--excluded-cidrs <list>',
      'destinations that the workload wants left alone ($EDGEMESH_EXCLUDED_CIDRS)',
      env.EDGEMESH_EXCLUDED_CIDRS ?? '',
    )
    .option(
      '--excluded-ports <list>',
      'TCP ports that the workload wants left alone ($EDGEMESH_EXCLUDED_PORTS)',
      env.EDGEMESH_EXCLUDED_PORTS ?? '',
    )
    .option(
      '--resolv-conf <file>',
      'where the DNS servers stand ($EDGEMESH_RESOLV_CONF)',
      env.EDGEMESH_RESOLV_CONF || '/etc/resolv.conf',
    )
    .addOption(backend)
    .option('--dry-run', 'prints the rules and changes nothing', false)
    .option('--json', 'prints one JSON object', false)
    .option('--no-probe', 'does not try the kernel')
    .action((options: InitOptions) => init(options))
}

async function init(options: InitOptions): Promise<void> {
  const captures = capturesOf(options)
  if (options.dryRun) {
    const rules = preview(captures)
    const text = rules.map(
      ({ family, input }) => `# IPv${family}: ip${family === 6 ? '6' : ''}tables-restore --noflush\n${input}`,
    )
    return say(options.json, { rules }, text.join('\n').trimEnd())
  }
  const backend = await findBackend(options.backend)
  try {
    await install(captures, backend)
    const result = options.probe
      ? await probeKernel(probeCommand(probeTargets(captures)))
      : { outcome: 'skipped' as const }
    const families = captures.filter((c) => c.serviceCidrs.length > 0).map((c) => `IPv${c.family}`)
    const probed = {
      works: 'the kernel tells original destinations',
      'already-running': 'a sidecar already listens here, so the kernel was not probed again',
      skipped: 'the kernel was not probed',
    }[result.outcome]
    const time = 'ms' in result ? ` (${Math.round(result.ms)} ms)` : ''
    say(
      options.json,
      { backend, families, probe: result },
      `Wrote the EDGE-MESH rules (${backend}, ${families.join(' and ')}); ${probed}${time}.`,
    )
  } catch (error) {
    // Half a set-up would hang the pod; none at all only leaves it out of the mesh, and init fails anyway.
    await cleanup().catch((second) => {
      throw new EdgeMeshError(
        'rules-failed',
        `${sentenceOf(error)} Then the rules could not be removed.`,
        second,
      )
    })
    throw error
  }
}

function capturesOf(options: InitOptions): Capture[] {
  const cidrs = byFamily(listOf(options.serviceCidrs), '--service-cidrs')
  if (cidrs[4].length + cidrs[6].length === 0) {
    throw new EdgeMeshError(
      'bad-config',
      'Cannot write the rules: no service CIDR is given. Set --service-cidrs or EDGEMESH_SERVICE_CIDRS.',
    )
  }
  const ignored = byFamily(listOf(options.ignoredServiceIps), '--ignored-service-ips')
  const excluded = byFamily(listOf(options.excludedCidrs), '--excluded-cidrs')
  const excludedPorts = listOf(options.excludedPorts).map(portOf)
  const servers = byFamily(dnsServersOf(options.resolvConf), options.resolvConf)
  return ([4, 6] as const).map((family) => ({
    family,
    serviceCidrs: cidrs[family],
    dnsServers: servers[family],
    ignoredAddresses: ignored[family],
    excludedCidrs: excluded[family],
    excludedPorts,
    spread: mayBindToDevice(release()),
  }))
}

function portOf(text: string): number {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : 0
  if (port > 0 && port < 65_536) return port
  throw new EdgeMeshError('bad-config', `Cannot use "${text}" of --excluded-ports: it is not a port number.`)
}

function dnsServersOf(path: string): string[] {
  try {
    return parseResolvConf(readFileSync(path, 'utf8')).servers
  } catch (error) {
    throw new EdgeMeshError(
      'bad-config',
      `Cannot read ${path}: ${codeOf(error)}. Name another with --resolv-conf.`,
      error,
    )
  }
}

/** One address inside each family's first service CIDR: its last, which is hardly ever a service. */
export function probeTargets(captures: readonly Capture[]): Destination[] {
  return captures.flatMap(
    ({ family, serviceCidrs, ignoredAddresses, excludedCidrs = [], excludedPorts = [] }) => {
      const [cidr] = serviceCidrs
      if (cidr === undefined || excludedPorts.includes(probePort)) return []
      const address = lastAddress(cidr, family)
      const leftAlone = isWithin(address, [...ignoredAddresses, ...excludedCidrs], family)
      return leftAlone ? [] : [{ address, port: probePort }]
    },
  )
}

/** discard: nobody listens there. */
const probePort = 9

function isWithin(address: string, places: readonly string[], family: 4 | 6): boolean {
  const list = new BlockList()
  for (const place of places) {
    const [base = '', prefix] = place.split('/')
    list.addSubnet(base, prefix === undefined ? (family === 4 ? 32 : 128) : Number(prefix), `ipv${family}`)
  }
  return list.check(address, `ipv${family}`)
}

function lastAddress(cidr: string, family: 4 | 6): string {
  const [address = '', prefix] = cidr.split('/')
  const bits = family === 4 ? 32 : 128
  const hostBits = BigInt(bits - Number(prefix ?? bits))
  const groups = family === 4 ? address.split('.').map(Number) : expand(address)
  const width = family === 4 ? 8n : 16n
  const base = groups.reduce((sum, group) => (sum << width) | BigInt(group), 0n)
  const last = ((base >> hostBits) << hostBits) | ((1n << hostBits) - 1n)
  const parts = groups.map((_, i) => (last >> (width * BigInt(groups.length - 1 - i))) & ((1n << width) - 1n))
  if (family === 4) return parts.join('.')
  return new URL(`http://[${parts.map((p) => p.toString(16)).join(':')}]`).hostname.slice(1, -1)
}

/** The eight groups of an IPv6 address. */
function expand(address: string): number[] {
  const [head = '', tail] = (
    isIP(address) === 6 ? new URL(`http://[${address}]`).hostname.slice(1, -1) : ''
  ).split('::')
  const left = head === '' ? [] : head.split(':')
  const right = tail === undefined || tail === '' ? [] : tail.split(':')
  const middle = tail === undefined ? [] : Array.from({ length: 8 - left.length - right.length }, () => '0')
  return [...left, ...middle, ...right].map((g) => Number.parseInt(g, 16))
}

function listOf(text: string | undefined): string[] {
  return (text ?? '')
    .split(',')
    .map((s) => s.trim())
    .filter((s) => s !== '')
}

function say(json: boolean, object: object, sentence: string): void {
  console.log(json ? JSON.stringify(object) : sentence)
}
