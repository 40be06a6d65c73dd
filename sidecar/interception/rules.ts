import { BlockList, isIP } from 'node:net'
import { EdgeMeshError } from '#shared/errors.ts'
import { ports, SIDECAR_UID } from '#shared/ports.ts'

export type Family = 4 | 6

/** What is captured in one address family. */
export interface Capture {
  family: Family
  /** Service CIDRs: only traffic to them is redirected. */
  serviceCidrs: readonly string[]
  /** The resolv.conf servers; port 53 of each goes to our resolver. Loopback ones are never redirected. */
  dnsServers: readonly string[]
  /** ClusterIPs of services that opted out (noproxy=edgemesh). */
  ignoredAddresses: readonly string[]
  /** Lets the sidecar take an ignored address back when its label goes; needs the kernel's match `recent`. */
  reclaimable?: boolean
  /** What the workload asked to be left alone: CIDRs, and TCP ports wherever they are. */
  excludedCidrs?: readonly string[]
  excludedPorts?: readonly number[]
  /** The interceptor listens on all of loopback: each service has an address of its own there. IPv4 only. */
  spread?: boolean
}

/** Chains of ours and their rules, as iptables-save prints them without the leading `-A CHAIN`. */
export interface Table {
  name: 'nat' | 'raw'
  chains: { name: string; rules: string[] }[]
  /** Jumps from the kernel's chains into ours; added last, removed first. */
  jumps: { from: string; rule: string }[]
}

export const rootChain = 'EDGE-MESH'
const tcpChain = 'EDGE-MESH-TCP'
const untrackedOutChain = 'EDGE-MESH-OUT'
const untrackedInChain = 'EDGE-MESH-IN'
const reclaimChain = 'EDGE-MESH-RECLAIM'

/**
 * Where captured connections arrive: the kernel chooses by source and destination address, so those of each service
 * meet at an address of their own. On one address for all, apps would have one source port at a time for all services
 * together, and one that was used for another service in the last minute finds the interceptor's socket in TIME_WAIT,
 * whose timestamps are not comparable: the SYN is thrown away, and a second is lost.
 */
const spreadOver = '127.64.0.0-127.127.255.255'

const comment = (text: string) => `-m comment --comment "${text}"`

/** Sorts addresses and CIDRs by family; a malformed one is a `bad-config` that names where it came from. */
export function byFamily(items: readonly string[], from: string): Record<Family, string[]> {
  const sorted: Record<Family, string[]> = { 4: [], 6: [] }
  for (const item of items) {
    const [address = '', prefix, ...more] = item.split('/')
    const family = isIP(address)
    const bits = prefix === undefined ? 0 : /^\d{1,3}$/.test(prefix) ? Number(prefix) : 999
    if (family === 0 || more.length > 0 || bits > (family === 4 ? 32 : 128)) {
      throw new EdgeMeshError(
        'bad-config',
        `Cannot use "${item}" of ${from}: it is not an IP address or CIDR.`,
      )
    }
    sorted[family as Family].push(item)
  }
  return sorted
}

/** The tables of one family, or none where there is nothing to capture in it. */
export function tablesFor(capture: Capture): Table[] {
  const { family, serviceCidrs, ignoredAddresses, excludedCidrs = [], excludedPorts = [] } = capture
  const reclaimable = capture.reclaimable === true && ignoredAddresses.length > 0
  const servers = capture.dnsServers.filter((s) => !isLoopback(s))
  if (serviceCidrs.length === 0 && servers.length === 0) return []
  const loopback = family === 4 ? '127.0.0.0/8' : '::1/128'
  const bits = family === 4 ? 32 : 128
  const host = (address: string) => (address.includes('/') ? address : `${address}/${bits}`)
  const root = [
    `-m owner --uid-owner ${SIDECAR_UID} ${comment('sidecar traffic is never captured')} -j RETURN`,
    `-o lo ${comment('loopback is never captured')} -j RETURN`,
    `-d ${loopback} ${comment('loopback is never captured')} -j RETURN`,
    ...servers.flatMap((server) =>
      ['udp', 'tcp'].map(
        (protocol) =>
          `-d ${host(server)} -p ${protocol} -m ${protocol} --dport 53 ${comment('names are answered by the sidecar')} -j REDIRECT --to-ports ${ports.dns}`,
      ),
    ),
    ...ignoredAddresses.map(
      (a) =>
        `-d ${host(a)} ${reclaimable ? `${reclaimed(family, '! --rcheck')} ` : ''}${comment('ignored service (noproxy=edgemesh)')} -j RETURN`,
    ),
    ...excludedCidrs.map((cidr) => `-d ${host(cidr)} ${comment('excluded by the workload')} -j RETURN`),
    ...excludedPorts.map(
      (port) => `-p tcp -m tcp --dport ${port} ${comment('excluded by the workload')} -j RETURN`,
    ),
    ...serviceCidrs.map((cidr) => `-d ${host(cidr)} -p tcp ${comment('edgemesh services')} -j ${tcpChain}`),
  ]
  const target =
    capture.spread === true && family === 4
      ? `DNAT --to-destination ${spreadOver}:${ports.interceptor}`
      : `REDIRECT --to-ports ${ports.interceptor}`
  const redirect = `-p tcp ${comment('to the intercepting proxy')} -j ${target}`
  const nat: Table = {
    name: 'nat',
    chains: [
      { name: rootChain, rules: root },
      { name: tcpChain, rules: [redirect] },
    ],
    jumps: [{ from: 'OUTPUT', rule: `${comment('edgemesh root chain')} -j ${rootChain}` }],
  }
  const raw = [
    untracked(serviceCidrs.map(host), servers.map(host)),
    ...(reclaimable ? [reclaiming(family)] : []),
  ]
  const chains = raw.flatMap((part) => part.chains)
  return [nat, { name: 'raw', chains, jumps: raw.flatMap((part) => part.jumps) }]
}

/** Matches by the list of ignored addresses that the sidecar has taken back, or changes it. */
function reclaimed(family: Family, action: string): string {
  const mask = family === 4 ? '255.255.255.255' : 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff'
  return `-m recent ${action} --name ${reclaimChain} --mask ${mask} --rdest`
}

/**
 * The sidecar may not write rules, but it may send: its datagram to an address puts the address on the list or
 * takes it off, and is dropped here. Nobody else in the pod can, as the rules ask for the sidecar's uid.
 */
function reclaiming(family: Family): Pick<Table, 'chains' | 'jumps'> {
  const from = `-m owner --uid-owner ${SIDECAR_UID}`
  const to = (port: number) => `-p udp -m udp --dport ${port}`
  const text = comment('the sidecar takes an ignored service back, or lets it go')
  return {
    chains: [
      {
        name: reclaimChain,
        rules: [
          `${to(ports.reclaim)} ${from} ${reclaimed(family, '--set')} ${text}`,
          `${to(ports.release)} ${from} ${reclaimed(family, '--remove')} ${text}`,
          `${to(ports.reclaim)} ${from} ${text} -j DROP`,
          `${to(ports.release)} ${from} ${text} -j DROP`,
        ],
      },
    ],
    jumps: [{ from: 'OUTPUT', rule: `-p udp ${comment('edgemesh ignored services')} -j ${reclaimChain}` }],
  }
}

/**
 * What the sidecar itself sends to services and to DNS servers is kept out of conntrack. NAT is decided by a flow's first
 * packet: where an app has just asked the same server from the same source port, its entry would send the sidecar's query
 * back to the sidecar, a loop (istio #33469). And the sidecar dials an address of a service itself while it does not know the
 * service yet: the entry of that would send an app's next connection from the same source port out of the pod. What
 * comes in from there is for the sidecar, as the apps' own packets never leave.
 *
 * Other rules are met by a connection's first packet, these jumps by each: so they decide by themselves, and what is cheap to
 * compare comes first (a comment is a match of its own). An app's packets never get past them, nor do the answers it gets,
 * which come in by `lo` and have been seen by then.
 */
function untracked(cidrs: readonly string[], servers: readonly string[]): Pick<Table, 'chains' | 'jumps'> {
  const [services, dns] = ['connections of the sidecar to services', 'queries of the sidecar'].map((what) =>
    comment(`${what} are not tracked`),
  )
  const inside = new BlockList()
  for (const [address = '', bits] of cidrs.map((cidr) => cidr.split('/')))
    inside.addSubnet(address, Number(bits), isIP(address) === 6 ? 'ipv6' : 'ipv4')
  const outside = servers.filter((server) => {
    const [address = ''] = server.split('/')
    return !inside.check(address, isIP(address) === 6 ? 'ipv6' : 'ipv4')
  })
  const jump = (match: string, chain: string) => `${match} ${comment('edgemesh, untracked')} -j ${chain}`
  const owner = `-m owner --uid-owner ${SIDECAR_UID}`
  const each = (rule: (server: string, protocol: string) => string) =>
    servers.flatMap((server) => ['udp', 'tcp'].map((protocol) => rule(server, protocol)))
  return {
    chains: [
      {
        name: untrackedOutChain,
        rules: [
          ...cidrs.map((cidr) => `-d ${cidr} -p tcp ${services} -j CT --notrack`),
          ...each((server, p) => `-d ${server} -p ${p} -m ${p} --dport 53 ${dns} -j CT --notrack`),
        ],
      },
      {
        name: untrackedInChain,
        rules: [
          ...cidrs.map((cidr) => `-s ${cidr} -p tcp ${services} -j CT --notrack`),
          ...each((server, p) => `-s ${server} -p ${p} -m ${p} --sport 53 ${dns} -j CT --notrack`),
        ],
      },
    ],
    jumps: [...cidrs, ...outside].flatMap((range) => [
      { from: 'OUTPUT', rule: jump(`-d ${range} ${owner}`, untrackedOutChain) },
      { from: 'PREROUTING', rule: jump(`-s ${range} ! -i lo`, untrackedInChain) },
    ]),
  }
}

/**
 * Input for `iptables-restore --noflush`: all of it takes effect at once or not at all. `present` is what
 * iptables-save shows now: jumps that are there are taken out first, so a rerun changes nothing.
 */
export function renderInstall(tables: readonly Table[], present: string): string {
  return tables
    .flatMap(({ name, chains, jumps }) => [
      `*${name}`,
      ...chains.map((c) => `:${c.name} - [0:0]`), // declares the chain, or empties the one that is there
      ...removals(
        present,
        name,
        jumps.map((j) => j.rule),
      ),
      ...chains.flatMap((c) => c.rules.map((rule) => `-A ${c.name} ${rule}`)),
      ...jumps.map((j) => `-A ${j.from} ${j.rule}`),
      'COMMIT',
    ])
    .concat('')
    .join('\n')
}

/** Input for `iptables-restore --noflush` that takes every chain and jump of ours out of what is present. */
export function renderCleanup(present: string): string {
  const lines: string[] = []
  for (const [name, table] of Object.entries(tablesOf(present))) {
    const ours = table.chains.filter((c) => c.startsWith(rootChain))
    if (ours.length === 0) continue
    lines.push(
      `*${name}`,
      ...table.rules
        .filter((r) => !r.startsWith(`-A ${rootChain}`) && jumpsToOurs(r))
        .map((r) => r.replace(/^-A/, '-D')),
      ...ours.map((chain) => `-F ${chain}`),
      ...ours.map((chain) => `-X ${chain}`),
      'COMMIT',
    )
  }
  return lines.length === 0 ? '' : `${lines.join('\n')}\n`
}

/** What is missing or foreign in our chains, as sentences; empty when iptables-save shows just what we wrote. */
export function differences(tables: readonly Table[], present: string): string[] {
  const found = tablesOf(present)
  return tables.flatMap(({ name, chains, jumps }) => {
    const rules = found[name]?.rules ?? []
    const wrong: string[] = []
    for (const chain of chains) {
      const wanted = chain.rules.map((r) => normalize(`-A ${chain.name} ${r}`))
      const actual = rules.filter((r) => r.startsWith(`-A ${chain.name} `)).map(normalize)
      if (wanted.join('\n') !== actual.join('\n'))
        wrong.push(`chain ${chain.name} of table ${name} is not as written`)
    }
    for (const { from, rule } of jumps) {
      const count = rules.map(normalize).filter((r) => r === normalize(`-A ${from} ${rule}`)).length
      if (count !== 1) wrong.push(`${from} of table ${name} jumps to our chain ${count} times`)
    }
    return wrong
  })
}

/** Whether iptables-save output holds chains of ours. */
export function holdsOurs(present: string): boolean {
  return Object.values(tablesOf(present)).some((t) => t.chains.some((c) => c.startsWith(rootChain)))
}

/** Whether it holds any rule or chain at all, beyond the kernel's own. */
export function holdsAny(present: string): boolean {
  return /^-A /m.test(present) || /^:\S+ - /m.test(present)
}

function removals(present: string, table: string, rules: readonly string[]): string[] {
  const targets = rules.map((r) => r.split(' -j ')[1])
  return (tablesOf(present)[table]?.rules ?? [])
    .filter((r) => targets.includes(r.split(' -j ')[1]) && !r.startsWith(`-A ${rootChain}`))
    .map((r) => r.replace(/^-A/, '-D'))
}

function jumpsToOurs(rule: string): boolean {
  return rule.split(' -j ')[1]?.startsWith(rootChain) === true
}

function tablesOf(present: string): Record<string, { chains: string[]; rules: string[] }> {
  const tables: Record<string, { chains: string[]; rules: string[] }> = {}
  let current = { chains: [] as string[], rules: [] as string[] }
  for (const line of present.split('\n')) {
    if (line.startsWith('*')) {
      current = { chains: [], rules: [] }
      tables[line.slice(1).trim()] = current
    } else if (line.startsWith(':')) current.chains.push(line.slice(1).split(' ')[0] ?? '')
    else if (line.startsWith('-A')) current.rules.push(line)
  }
  return tables
}

/** The back ends differ in the order of matches and in quotes; the words are the same. */
function normalize(rule: string): string {
  return (rule.match(/"[^"]*"|\S+/g) ?? []).sort().join(' ')
}

function isLoopback(address: string): boolean {
  return address.startsWith('127.') || address === '::1'
}
