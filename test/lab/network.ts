import { readFile } from 'node:fs/promises'
import { contactedList, gatewayRules, isOpen, type NatKind, nodeRules, routerRules } from './nat.ts'
import { mustRun, run } from './shell.ts'
import {
  dnsAddress,
  type EdgeSite,
  hostOf,
  type LabNode,
  type Layout,
  podCidrs,
  podIPv6,
  serverAddress,
} from './topology.ts'

/** Namespaces are `em-LAB-MACHINE`; the prefix is how `down` finds them when nothing else is left. */
export function namespaceOf(lab: string, machine: string): string {
  return `em-${lab}-${machine}`
}

export function inNamespace(namespace: string, argv: readonly string[]): string[] {
  return ['nsenter', `--net=/run/netns/${namespace}`, '--', ...argv]
}

export interface NetworkOptions {
  cni: boolean
  /** What the cables to a site's nodes carry, in kbit/s; as much as the machine can when undefined. */
  lanKbit?: number | undefined
}

/** Makes the internet, the sites and their nodes. Nothing of it is in the host's own namespace. */
export async function makeNetwork(
  lab: string,
  layout: Layout,
  { cni, lanKbit }: NetworkOptions,
): Promise<void> {
  const { machines, nodes, sites } = layout
  const ns = (machine: string) => namespaceOf(lab, machine)
  await mustRun(['ip', '-batch', '-'], { input: machines.map((m) => `netns add ${ns(m)}`).join('\n') })
  await Promise.all(machines.map((m) => inside(ns(m), forwarding)))
  await ip(ns('internet'), [
    ...up('lo'),
    `link add cloud0 type veth peer name eth0 netns ${ns('mkmaster1')}`,
    ...sites.map((s) => `link add ${s.name}0 type veth peer name eth0 netns ${ns(s.router)}`),
    `addr add 203.0.113.1/32 dev lo`,
    `addr add ${dnsAddress}/32 dev lo`,
    ...['cloud', ...sites.map((s) => s.name)].flatMap((site) => up(`${site}0`)),
    ...['cloud', ...sites.map((s) => s.name)].flatMap((site) => routesTo(layout, site)),
  ])
  await Promise.all([
    ip(ns('mkmaster1'), [
      ...gatewayToInternet(serverAddress),
      `link add lan0 type veth peer name eth0 netns ${ns('mkworker3')}`,
      'addr add 172.20.0.1/24 dev lan0',
      ...up('lan0'),
    ]),
    ...sites.map((site) => makeRouter(lab, layout, site, lanKbit)),
  ])
  await Promise.all([
    restore(ns('mkmaster1'), gatewayRules),
    ...sites.map((site) => restore(ns(site.router), rulesOf(layout, site, site.nat))),
    ...nodes.map((node) => makeNode(lab, layout, node, cni)),
  ])
}

/** A site's router with a bridge for its LAN, and a cable to each node. */
async function makeRouter(
  lab: string,
  { nodes }: Layout,
  site: EdgeSite,
  lanKbit: number | undefined,
): Promise<void> {
  const own = nodes.filter((n) => n.site === site.name)
  await ip(namespaceOf(lab, site.router), [
    ...gatewayToInternet(site.wan),
    'link add lan0 type bridge',
    `addr add ${site.lan}.1/24 dev lan0`,
    ...up('lan0'),
    ...own.flatMap(({ name, pods }) => [
      `link add to-node${pods} type veth peer name eth0 netns ${namespaceOf(lab, name)}`,
      `link set to-node${pods} master lan0`,
      ...up(`to-node${pods}`),
    ]),
  ])
  if (lanKbit === undefined) return
  const bucket = ['tbf', 'rate', `${lanKbit}kbit`, 'burst', '1600', 'mpu', '1500', 'latency', '500ms']
  for (const { pods } of own)
    await mustRun([
      'tc',
      '-n',
      namespaceOf(lab, site.router),
      'qdisc',
      'add',
      'dev',
      `to-node${pods}`,
      'root',
      ...bucket,
    ])
}

function rulesOf(layout: Layout, site: EdgeSite, kind: NatKind): string {
  return routerRules(kind, { wan: site.wan, host: hostOf(layout, site).address })
}

/** What the internet knows of a site. */
function routesTo({ sites }: Layout, name: string): string[] {
  if (name === 'cloud') return [`route replace ${serverAddress}/32 dev cloud0`]
  return sites.flatMap((site) => {
    if (site.name !== name) return []
    const wan = `route replace ${site.wan}/32 dev ${name}0`
    const lan = `route replace ${site.lan}.0/24 via ${site.wan} dev ${name}0 onlink`
    return site.nat === 'none' ? [wan, lan] : [wan]
  })
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
export async function setUplink(
  lab: string,
  layout: Layout,
  site: string,
  state: 'up' | 'down',
): Promise<void> {
  const routes = state === 'up' ? routesTo(layout, site) : []
  await ip(namespaceOf(lab, 'internet'), [`link set ${site}0 ${state}`, ...routes])
}

/** A router that has been off for a moment: it knows no connection any more. Its rules and address are as before. */
export async function forgetConnections(lab: string, router: string): Promise<void> {
  const list = `/proc/net/xt_recent/${contactedList}`
  await inside(namespaceOf(lab, router), `conntrack -F 2>/dev/null; [ ! -e ${list} ] || echo / > ${list}`)
}

/** Whether what crosses the internet goes through the TUN device of delay.ts. */
export async function routeThroughDelay(lab: string, layout: Layout, on: boolean): Promise<void> {
  const namespace = namespaceOf(lab, 'internet')
  const links = ['cloud', ...layout.sites.map((s) => s.name)].map((site) => `${site}0`)
  for (const link of links) await run(['ip', '-n', namespace, 'rule', 'del', 'iif', link, 'pref', '100'])
  if (!on) return
  const known = (await run(['ip', '-n', namespace, 'link', 'show', 'tun0'])).code === 0
  await ip(namespace, [
    ...(known ? [] : ['tuntap add dev tun0 mode tun', 'link set tun0 txqueuelen 10000', ...up('tun0')]),
    'route replace default dev tun0 table 100',
    ...links.map((link) => `rule add iif ${link} lookup 100 pref 100`),
  ])
}

/** Namespaces of a lab, or of every lab. */
/** A ^C of the terminal does not reach what takes a lab down. */
const onItsOwn = { detached: true } as const

export async function namespacesOf(lab: string | undefined): Promise<string[]> {
  const prefix = lab === undefined ? 'em-' : `em-${lab}-`
  const all = (await mustRun(['ip', 'netns', 'list'], onItsOwn))
    .split('\n')
    .map((line) => line.split(' ')[0] ?? '')
  return all.filter((name) => name.startsWith(prefix))
}

/** Ends every process inside the namespaces (they are all ours) and deletes them. */
export async function deleteNamespaces(namespaces: readonly string[]): Promise<void> {
  const listed = await Promise.all(namespaces.map((ns) => run(['ip', 'netns', 'pids', ns], onItsOwn)))
  const pids = listed.flatMap(({ stdout }) => stdout.split('\n').filter((pid) => pid !== ''))
  for (const pid of pids) await run(['kill', '-KILL', pid], onItsOwn)
  for (const pid of pids) await gone(pid)
  if (namespaces.length > 0) {
    await run(['ip', '-force', '-batch', '-'], {
      ...onItsOwn,
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

async function makeNode(lab: string, layout: Layout, node: LabNode, cni: boolean): Promise<void> {
  const namespace = namespaceOf(lab, node.name)
  const { nodes, sites } = layout
  const others = cni ? nodes.filter((n) => n.site === node.site && n !== node) : []
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
  const pods = `10.244.${node.pods}.0/24`
  const site = sites.find((s) => s.name === node.site)
  const open = site !== undefined && isOpen(site.nat) ? { open: `10.244.${node.pods}.2` } : {}
  await restore(namespace, nodeRules({ pods, allPods: podCidrs.v4, cni, ...open }))
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
