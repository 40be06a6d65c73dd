import { execFileSync } from 'node:child_process'
import { chmodSync, copyFileSync, cpSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

/** Debian packages whose files the image takes: iptables in both forms, what it links to, and what Node links to. */
const packages = [
  'iptables',
  'libxtables12',
  'libip4tc2',
  'libip6tc2',
  'libnftnl11',
  'libmnl0',
  'libnetfilter-conntrack3',
  'libnfnetlink0',
  'netbase',
  'libc6',
  'libgcc-s1',
  'libstdc++6',
]
const libraries =
  /\/(ld-linux[^/]*|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|xtables|ip4tc|ip6tc|nftnl|mnl|netfilter_conntrack|nfnetlink|atomic|resolv|nss_dns|nss_files))\.so[.0-9]*$/
const iptablesNames = [
  'iptables',
  'iptables-save',
  'iptables-restore',
  'ip6tables',
  'ip6tables-save',
  'ip6tables-restore',
]
const modules =
  /\/lib(xt|ipt|ip6t)_(comment|conntrack|owner|REDIRECT|tcp|udp|standard|CT|NAT|DNAT|SNAT|addrtype|multiport|recent)\.so$/

/** Fetches the packages (never installed) and unpacks them into `folder`. Needs apt-get and dpkg. */
export function unpackDebian(folder: string): void {
  const debs = join(folder, 'debs')
  mkdirSync(debs, { recursive: true })
  chmodSync(debs, 0o777) // apt-get downloads as its own user
  execFileSync('apt-get', ['download', '-q', ...packages], {
    cwd: debs,
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  for (const deb of readdirSync(debs)) execFileSync('dpkg', ['-x', join(debs, deb), join(folder, 'all')])
}

/** The layer below the programs: Node, iptables and the libraries of both, users, nothing else; no shell. */
export function makeSystem(unpacked: string, target: string, nodeBinary: string): void {
  const all = join(unpacked, 'all')
  const take = (path: string) => {
    mkdirSync(dirname(join(target, path)), { recursive: true })
    cpSync(join(all, path), join(target, path), { verbatimSymlinks: true })
  }
  for (const path of filesOf(all)) if (libraries.test(path) || modules.test(path)) take(path)
  mkdirSync(join(target, 'usr/sbin'), { recursive: true })
  for (const kind of ['legacy', 'nft']) {
    const multi = `xtables-${kind}-multi`
    take(join('usr/sbin', multi))
    for (const name of iptablesNames) {
      const [head = '', ...rest] = name.split('-')
      symlinkSync(multi, join(target, 'usr/sbin', [head, kind, ...rest].join('-')))
    }
  }
  take('etc/protocols')
  mkdirSync(join(target, 'usr/local/bin'), { recursive: true })
  copyFileSync(nodeBinary, join(target, 'usr/local/bin/node'))
  chmodSync(join(target, 'usr/local/bin/node'), 0o755)
  execFileSync('strip', ['--strip-unneeded', join(target, 'usr/local/bin/node')])
  writeFileSync(
    join(target, 'etc/passwd'),
    'root:x:0:0::/:/sbin/nologin\nedgemesh:x:1337:1337::/:/sbin/nologin\n',
  )
  writeFileSync(join(target, 'etc/group'), 'root:x:0:\nedgemesh:x:1337:\n')
  writeFileSync(join(target, 'etc/nsswitch.conf'), 'hosts: files dns\n')
  for (const [folder, mode] of [
    ['tmp', 0o1777],
    ['run', 0o755],
    ['proc', 0o555],
    ['sys', 0o555],
    ['dev', 0o755],
  ] as const) {
    mkdirSync(join(target, folder), { recursive: true })
    chmodSync(join(target, folder), mode)
  }
}

function filesOf(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((e) => e.isFile() || e.isSymbolicLink())
    .map((e) => join(e.parentPath, e.name).slice(folder.length + 1))
}
