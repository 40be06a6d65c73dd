import { readFileSync } from 'node:fs'
import { run } from './shell.ts'

/** The host's own iptables, byte for byte but for the time stamps that iptables-save writes into comments. */
export async function hostRules(): Promise<string> {
  const programs = ['iptables-nft-save', 'ip6tables-nft-save']
  // Asking the legacy programs makes their tables; so only where there are some.
  if (hasLegacyTables('/proc/net/ip_tables_names')) programs.push('iptables-legacy-save')
  if (hasLegacyTables('/proc/net/ip6_tables_names')) programs.push('ip6tables-legacy-save')
  const saved = await Promise.all(programs.map((program) => run([program])))
  return saved.map(({ stdout }, i) => `== ${programs[i]}\n${stdout.replaceAll(/^#.*\n/gm, '')}`).join('')
}

/** Rules, routes, links, namespaces and the settings that somebody could have changed. */
export async function hostState(): Promise<Record<string, string>> {
  const of = async (...argv: string[]) => (await run(argv)).stdout
  return {
    rules: await hostRules(),
    routes: `${await of('ip', '-4', 'route', 'show', 'table', 'all')}${await of('ip', '-6', 'route', 'show', 'table', 'all')}`,
    policies: `${await of('ip', '-4', 'rule')}${await of('ip', '-6', 'rule')}`,
    links: (await of('ip', '-br', 'address')).replaceAll(/ +/g, ' '),
    namespaces: (await of('ip', 'netns', 'list'))
      .split('\n')
      .filter((n) => n.startsWith('em-'))
      .join('\n'),
    settings: (await of('sysctl', '-a'))
      .split('\n')
      .filter((line) => lasting.test(line))
      .join('\n'),
    resolver: readFileSync('/etc/resolv.conf', 'utf8'),
    mounts: readFileSync('/proc/self/mounts', 'utf8')
      .split('\n')
      .filter((m) => m.includes('edgemesh-lab'))
      .join('\n'),
  }
}

/** Settings of the network and the kernel; counters and the like change by themselves. */
const lasting =
  /^(net\.(ipv4|ipv6|bridge|netfilter\.nf_conntrack_(max|tcp|udp))|kernel\.(pid_max|panic)|vm\.(overcommit|swappiness)|fs\.file-max)(?!.*(_count|route\.flush))/

function hasLegacyTables(path: string): boolean {
  try {
    return readFileSync(path, 'utf8').trim() !== ''
  } catch {
    return false // the kernel has no legacy tables at all
  }
}
