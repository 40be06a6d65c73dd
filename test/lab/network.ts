import { readFile } from 'node:fs/promises'
import { mustRun, run } from './shell.ts'
import { dnsAddress, type LabNode, machines, nodes, podCidrs, podIPv6, serverAddress } from './topology.ts'

/** Namespaces are `em-LAB-MACHINE`; the prefix is how `down` finds them when nothing else is left. */
export function namespaceOf(lab: string, machine: string): string {
  return `em-${lab}-${machine}`
}

export function inNamespace(namespace: string, argv: readonly string[]): string[] {
  return ['nsenter', `--net=/run/netns/${namespace}`, '--', ...argv]
}

/** Makes the internet, the two sites and their nodes. Nothing of it is in the host's own namespace. */
export async function makeNetwork(lab: string, withDelay: boolean): Promise<void> {
  const ns = (machine: string) => namespaceOf(lab, machine)
  await mustRun(['ip', '-batch', '-'], { input: machines.map((m) => `netns add ${ns(m)}`).join('\n') })
  await Promise.all(machines.map((m) => inside(ns(m), forwarding)))
  await ip(ns('internet'), [
    ...up('lo'),
    `link add cloud0 type veth peer name eth0 netns ${ns('mkmaster1')}`,
    `link add edge0 type veth peer name eth0 netns ${ns('edge-router')}`,
    `addr add 203.0.113.1/32 dev lo`,
    `addr add ${dnsAddress}/32 dev lo`,
    ...['cloud0', 'edge0'].flatMap(up),
    `route add ${serverAddress}/32 dev cloud0`,
    'route add 203.0.113.20/32 dev edge0',
  ])
  await Promise.all([
    ip(ns('mkmaster1'), [
      ...gatewayToInternet(serverAddress),
      `link add lan0 type veth peer name eth0 netns ${ns('mkworker3')}`,
      'addr add 172.20.0.1/24 dev lan0',
      ...up('lan0'),
    ]),
    ip(ns('edge-router'), [
      ...gatewayToInternet('203.0.113.20'),
      'link add lan0 type bridge',
      'addr add 192.168.1.1/24 dev lan0',
      ...up('lan0'),
      ...['mkedge2', 'mkedge3'].flatMap((node) => [
        `link add to-${node} type veth peer name eth0 netns ${ns(node)}`,
        `link set to-${node} master lan0`,
        ...up(`to-${node}`),
      ]),
    ]),
  ])
  await Promise.all([
    restore(ns('mkmaster1'), router('lan0')),
    restore(ns('edge-router'), `${router('lan0')}${portRestricted}`),
    ...nodes.map((node) => makeNode(ns(node.name), node)),
    ...(withDelay ? [delayRoutes(ns('internet'))] : []),
  ])
}

/** A pod: a namespace on its node's bridge, with a default route, as a CNI bridge plugin makes it. */
export async function makePod(
  lab: string,
  pod: string,
  node: LabNode,
  addresses: { v4: string; v6: string },
): Promise<void> {
  const namespace = namespaceOf(lab, pod)
  await mustRun(['ip', 'netns', 'add', namespace])
  const veth = `v${addresses.v4.split('.').slice(2).join('-')}`
  const own = addresses.v4.startsWith(`10.244.${node.pods}.`)
  await ip(namespace, [
    ...up('lo'),
    `link add eth0 type veth peer name ${veth} netns ${namespaceOf(lab, node.name)}`,
    `addr add ${addresses.v4}/${own ? 24 : 32} dev eth0`,
    `addr add ${addresses.v6}/${own ? 64 : 128} dev eth0 nodad`,
    ...up('eth0'),
    `route add default via 10.244.${node.pods}.1 dev eth0 onlink`,
    `route add default via ${podIPv6(node, 1)} dev eth0 onlink`,
  ])
  // A foreign pod IP (the same at two sites) is routed on its node as a host route.
  const foreign = own
    ? []
    : [`route add ${addresses.v4}/32 dev cni0`, `route add ${addresses.v6}/128 dev cni0`]
  await ip(namespaceOf(lab, node.name), [`link set ${veth} master cni0`, ...up(veth), ...foreign])
}

/** Cuts a site from the internet, or joins it again. */
export async function setUplink(lab: string, site: 'cloud' | 'edge', state: 'up' | 'down'): Promise<void> {
  await ip(namespaceOf(lab, 'internet'), [`link set ${site}0 ${state}`])
  const routed = site === 'cloud' ? serverAddress : '203.0.113.20'
  if (state === 'up') await ip(namespaceOf(lab, 'internet'), [`route replace ${routed}/32 dev ${site}0`])
}

/** Namespaces of a lab, or of every lab. */
export async function namespacesOf(lab: string | undefined): Promise<string[]> {
  const prefix = lab === undefined ? 'em-' : `em-${lab}-`
  const all = (await mustRun(['ip', 'netns', 'list'])).split('\n').map((line) => line.split(' ')[0] ?? '')
  return all.filter((name) => name.startsWith(prefix))
}

/** Ends every process inside the namespaces (they are all ours) and deletes them. */
export async function deleteNamespaces(namespaces: readonly string[]): Promise<void> {
  const listed = await Promise.all(namespaces.map((ns) => run(['ip', 'netns', 'pids', ns])))
  const pids = listed.flatMap(({ stdout }) => stdout.split('\n').filter((pid) => pid !== ''))
  for (const pid of pids) await run(['kill', '-KILL', pid])
  for (const pid of pids) await gone(pid)
  if (namespaces.length > 0) {
    await run(['ip', '-force', '-batch', '-'], {
      input: namespaces.map((ns) => `netns del ${ns}`).join('\n'),
    })
  }
}

async function gone(pid: string): Promise<void> {
  for (let i = 0; i < 100; i++) {
    const state = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined)
    if (state === undefined || state.includes(') Z ')) return
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

async function makeNode(namespace: string, node: LabNode): Promise<void> {
  const others = nodes.filter((n) => n.site === node.site && n !== node)
  const lanV6 = (n: LabNode) => `fd00:192:168:1::${n.pods}`
  await ip(namespace, [
    ...up('lo'),
    `addr add ${node.address}/24 dev eth0`,
    `addr add ${lanV6(node)}/64 dev eth0 nodad`,
    ...up('eth0'),
    `route add default via ${node.gateway}`,
    'link add cni0 type bridge',
    `addr add 10.244.${node.pods}.1/24 dev cni0`,
    `addr add ${podIPv6(node, 1)}/64 dev cni0 nodad`,
    ...up('cni0'),
    // The CNI's routes to other nodes' pods exist inside a site only.
    ...others.map((n) => `route add 10.244.${n.pods}.0/24 via ${n.address}`),
    ...others.map((n) => `route add fd00:10:244:${n.pods}::/64 via ${lanV6(n)}`),
  ])
  const masquerade = `-A POSTROUTING -s ${podCidrs.v4} ! -d ${podCidrs.v4} -j MASQUERADE`
  await restore(namespace, `*nat\n${masquerade}\nCOMMIT\n`)
}

function gatewayToInternet(address: string): string[] {
  return [
    ...up('lo'),
    `addr add ${address}/32 dev eth0`,
    ...up('eth0'),
    'route add 203.0.113.1/32 dev eth0',
    'route add default via 203.0.113.1',
  ]
}

/** Outbound only, as a home or factory router does; what its bridge switches may pass FORWARD too (br_netfilter). */
const router = (lan: string) => `*nat
-A POSTROUTING -o eth0 -j MASQUERADE
COMMIT
*filter
:FORWARD DROP
-A FORWARD -i ${lan} -o eth0 -j ACCEPT
-A FORWARD -i ${lan} -o ${lan} -j ACCEPT
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
COMMIT
`

/** Drops what nobody asked for, instead of answering it with a reset. */
const portRestricted = `*filter
-A INPUT -i eth0 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A INPUT -i eth0 -j DROP
COMMIT
`

/** Everything that crosses the internet goes through the delaying TUN device first. */
async function delayRoutes(namespace: string): Promise<void> {
  await ip(namespace, [
    'tuntap add dev tun0 mode tun',
    'link set tun0 txqueuelen 10000',
    ...up('tun0'),
    'route add default dev tun0 table 100',
    'rule add iif cloud0 lookup 100 pref 100',
    'rule add iif edge0 lookup 100 pref 100',
  ])
}

const forwarding =
  'for f in ipv4/ip_forward ipv6/conf/all/forwarding; do echo 1 > /proc/sys/net/$f; done; ' +
  'for f in all default; do echo 0 > /proc/sys/net/ipv4/conf/$f/rp_filter; done'

function up(device: string): string[] {
  return [`link set ${device} up`]
}

async function ip(namespace: string, commands: readonly string[]): Promise<void> {
  await mustRun(['ip', '-n', namespace, '-batch', '-'], { input: `${commands.join('\n')}\n` })
}

async function inside(namespace: string, script: string): Promise<void> {
  await mustRun(inNamespace(namespace, ['sh', '-c', script]))
}

async function restore(namespace: string, rules: string): Promise<void> {
  await mustRun(inNamespace(namespace, ['iptables-restore', '--noflush']), { input: rules })
}
