/** What the routers and nodes of the lab do to packets, as text for iptables-restore. Pure; network.ts applies it. */

/**
 * What a pod's way to the internet does to it. Mapping and filtering in the words of RFC 4787:
 *
 * - `full`: one mapping, anybody may answer it
 * - `address`: one mapping, for hosts that were sent something
 * - `port`: one mapping, for the very address and port that were sent something: a plain Linux MASQUERADE
 * - `symmetric`: another mapping for each destination, filtered like `port`
 * - `none`: the site's addresses are routed and nothing is filtered
 */
export const natKinds = ['full', 'address', 'port', 'symmetric', 'none'] as const
export type NatKind = (typeof natKinds)[number]

export function isNatKind(word: string): word is NatKind {
  return (natKinds as readonly string[]).includes(word)
}

/** The list of hosts that the address-restricted router was asked to reach. */
export const contactedList = 'contacted'
const contactSeconds = 120

/** A site's router: eth0 is the internet, lan0 the site. Replaces the tables nat and filter. */
export function routerRules(kind: NatKind, { wan, host }: { wan: string; host: string }): string {
  return kind === 'none' ? table('nat', []) + table('filter', []) : natRules(kind, wan, host)
}

function natRules(kind: Exclude<NatKind, 'none'>, wan: string, host: string): string {
  const cone = [
    `-A POSTROUTING -o eth0 -j SNAT --to-source ${wan}`,
    `-A PREROUTING -i eth0 -j DNAT --to-destination ${host}`,
  ]
  const mapping = {
    full: cone,
    address: cone,
    port: ['-A POSTROUTING -o eth0 -j MASQUERADE'],
    symmetric: ['-A POSTROUTING -o eth0 -j MASQUERADE --random-fully'],
  }
  return table('nat', mapping[kind]) + table('filter', kind === 'full' ? [] : filtering(kind === 'address'))
}

/**
 * Outbound only, as a home or factory router does. What its bridge switches may pass FORWARD too (br_netfilter).
 * INPUT drops what nobody asked for: a router that answers it with a reset would end every early SYN of a peer.
 */
function filtering(byAddress: boolean): string[] {
  const recent = (match: string) => `-m recent --name ${contactedList} ${match}`
  return [
    ':FORWARD DROP',
    ...(byAddress ? [`-A FORWARD -i lan0 -o eth0 ${recent('--rdest --set')}`] : []),
    '-A FORWARD -i lan0 -o eth0 -j ACCEPT',
    '-A FORWARD -i lan0 -o lan0 -j ACCEPT',
    '-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT',
    ...(byAddress
      ? [`-A FORWARD -i eth0 -o lan0 ${recent(`--rsource --rcheck --seconds ${contactSeconds}`)} -j ACCEPT`]
      : []),
    '-A INPUT -i eth0 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT',
    '-A INPUT -i eth0 -j DROP',
  ]
}

export interface NodeNat {
  /** The node's own pods, and those of all nodes. */
  pods: string
  allPods: string
  /** Whether pods of other nodes are reached by routes, and so without masquerade. */
  cni: boolean
  /** The pod that unasked-for packets to the node go to. */
  open?: string
}

/**
 * A node: masquerades its pods, the second NAT on the way out. Alone it would make a `port` of every kind, so where
 * the site is more open the node passes on to its pod what nobody asked for: the kind is that of the whole way.
 */
export function nodeRules({ pods, allPods, cni, open }: NodeNat): string {
  return table('nat', [
    cni
      ? `-A POSTROUTING -s ${allPods} ! -d ${allPods} -j MASQUERADE`
      : `-A POSTROUTING -s ${pods} ! -o cni0 -j MASQUERADE`,
    ...(open === undefined ? [] : [`-A PREROUTING -i eth0 -j DNAT --to-destination ${open}`]),
  ])
}

/** Whether a site of this kind lets in what its pods did not ask for, from some host at least. */
export function isOpen(kind: NatKind): boolean {
  return kind === 'none' || kind === 'full' || kind === 'address'
}

/** The cloud's gateway: like `port`, but the machine itself serves. */
export const gatewayRules =
  table('nat', ['-A POSTROUTING -o eth0 -j MASQUERADE']) +
  table(
    'filter',
    filtering(false).filter((rule) => !rule.startsWith('-A INPUT')),
  )

function table(name: string, lines: readonly string[]): string {
  return [`*${name}`, ...lines, 'COMMIT', ''].join('\n')
}
