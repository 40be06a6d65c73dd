import { inNamespace } from '../lab/network.ts'
import { mustRun } from '../lab/shell.ts'
import { addresses, kubeletPort, namespaceIn, places } from './layout.ts'

/** Makes the cloud's LAN, the edge's LAN and the router between them. Nothing is in the host's own namespace. */
export async function makeNetwork(cluster: string): Promise<void> {
  const [cloud, nat, edge] = (['cloud', 'nat', 'edge'] as const).map((place) =>
    namespaceIn(cluster, place),
  ) as [string, string, string]
  await mustRun(['ip', '-batch', '-'], {
    input: places.map((place) => `netns add ${namespaceIn(cluster, place)}\n`).join(''),
  })
  await ip(nat, [
    'link set lo up',
    `link add wan type veth peer name eth0 netns ${cloud}`,
    `link add lan type veth peer name eth0 netns ${edge}`,
    `addr add ${addresses.natWan}/24 dev wan`,
    `addr add ${addresses.natLan}/24 dev lan`,
    'link set wan up',
    'link set lan up',
  ])
  await ip(cloud, node(addresses.cloud, addresses.natWan))
  await ip(edge, node(addresses.edge, addresses.natLan))
  const forwarding = ['sh', '-c', 'echo 1 > /proc/sys/net/ipv4/ip_forward']
  for (const namespace of [cloud, nat, edge]) await mustRun(inNamespace(namespace, forwarding))
  await mustRun(inNamespace(nat, ['iptables-restore']), { input: routerRules })
}

/** Takes the edge's LAN off the router, or puts it back; running connections stay open, as with a pulled plug. */
export async function setEdgeLink(cluster: string, state: 'up' | 'down'): Promise<void> {
  await ip(namespaceIn(cluster, 'nat'), [`link set lan ${state}`])
}

const node = (address: string, gateway: string) => [
  'link set lo up',
  `addr add ${address}/24 dev eth0`,
  'link set eth0 up',
  `route add default via ${gateway}`,
]

/**
 * Lets the edge out and nobody in, and answers nobody who was not asked (RFC 4787's port-restricted filtering). The
 * one exception stands for the tunnel that a real edge cluster has: the API server reaches the kubelet, for exec and
 * logs.
 */
const routerRules = `*nat
-A POSTROUTING -o wan -j MASQUERADE
COMMIT
*filter
:FORWARD DROP
-A INPUT -i wan -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A INPUT -i wan -j DROP
-A FORWARD -i lan -o wan -j ACCEPT
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -i wan -o lan -d ${addresses.edge} -p tcp --dport ${kubeletPort} -j ACCEPT
COMMIT
`

async function ip(namespace: string, commands: readonly string[]): Promise<void> {
  await mustRun(['ip', '-n', namespace, '-batch', '-'], { input: `${commands.join('\n')}\n` })
}
