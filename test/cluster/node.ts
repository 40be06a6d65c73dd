import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { inNamespace } from '../lab/network.ts'
import { pidIn, signalIn } from '../lab/processes.ts'
import { mustRun } from '../lab/shell.ts'
import { pki, type Site, untilOk } from './control-plane.ts'
import { blaming, startDaemon, until } from './daemons.ts'
import { addresses, apiServerClusterIP, type ClusterNode, cgroupIn, namespaceIn } from './layout.ts'
import { nodeFiles } from './node-config.ts'

const importDeadlineMs = 120_000

/** Settings of the whole machine that the kubelet insists on, and ends itself where it may not write them. */
const machineSettings = {
  'kernel/keys/root_maxbytes': 25_000_000,
  'kernel/keys/root_maxkeys': 1_000_000,
  'kernel/panic': 10,
  'kernel/panic_on_oops': 1,
  'vm/overcommit_memory': 1,
  'vm/panic_on_oom': 0,
}

/** Starts a node up to where it knows its images; it does not need the API server yet. */
export async function startNode(site: Site, node: ClusterNode): Promise<void> {
  writeConfiguration(site, node)
  const own = folderOf(site, node)
  // Not "ip netns exec": it mounts a new /sys, which has no cgroups.
  const unshare = ['unshare', '--mount', '--propagation=private', '--pid', '--uts', '--fork', '--kill-child']
  const init = [...unshare, '--mount-proc', 'sh', '-euc', initScript, node, own]
  await startDaemon(site.folder, {
    part: node,
    cgroup: cgroupIn(site.cluster, node),
    argv: inNamespace(namespaceIn(site.cluster, node), init),
    forks: true,
  })
  await until({ what: `start node ${node}`, folder: site.folder, part: node }, () =>
    existsSync(join(own, 'mounted')) ? true : undefined,
  )
  await start(site, node, 'containerd', ['containerd', '--config', join(own, 'containerd.toml')])
  const socket = `/proc/${pidIn(site.folder, node)}/root/run/containerd/containerd.sock`
  await until({ what: `start containerd on ${node}`, folder: site.folder, part: `${node}-containerd` }, () =>
    existsSync(socket) ? true : undefined,
  )
  for (const archive of site.artifacts.images) await importImage(site, node, archive)
}

/** Starts what makes a Kubernetes node of it; the API server must serve. Resolves once both answer. */
export async function joinNode(site: Site, node: ClusterNode): Promise<void> {
  const proxy = [
    site.artifacts.hyperkube,
    'kube-proxy',
    `--config=${join(folderOf(site, node), 'kube-proxy.yaml')}`,
  ]
  await Promise.all([startKubelet(site, node), start(site, node, 'kube-proxy', proxy)])
  const url = `https://${apiServerClusterIP}/readyz`
  const what = `reach the API server by its clusterIP on ${node}`
  await blaming(site.folder, `${node}-kube-proxy`, what, untilOk(site, node, url))
}

export async function restartKubelet(site: Site, node: ClusterNode): Promise<void> {
  await signalIn(site.folder, `${node}-kubelet`, 'TERM')
  await startKubelet(site, node)
}

/** The command line that runs `argv` in all namespaces of the node, where containerd's `ctr` is on the PATH. */
export function commandOnNode(site: Site, node: ClusterNode, argv: readonly string[]): string[] {
  const { debian } = site.artifacts
  const system = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin']
  const path = [join(debian, 'usr/bin'), join(debian, 'usr/sbin'), ...system].join(':')
  const enter = ['nsenter', `--target=${pidIn(site.folder, node)}`, '--mount', '--uts', '--net', '--pid']
  return [...enter, '--', 'env', `PATH=${path}`, ...argv]
}

/**
 * Makes the images of an archive (docker or OCI) known to the node. `edgemesh/x:1` is known as
 * `docker.io/edgemesh/x:1` too, which is how the kubelet asks for it.
 */
export async function importImage(site: Site, node: ClusterNode, archive: string): Promise<void> {
  const ctr = (...args: string[]) =>
    mustRun(commandOnNode(site, node, ['ctr', '--namespace=k8s.io', 'images', ...args]), {
      timeoutMs: importDeadlineMs,
    })
  await ctr('import', '--no-unpack', archive)
  const names = (await ctr('list', '--quiet')).trim().split('\n')
  for (const name of names) {
    const full = fullImageName(name)
    if (!names.includes(full)) await ctr('tag', name, full)
  }
}

/** What the kubelet makes of an image's name: without a registry in front it is Docker's. */
export function fullImageName(name: string): string {
  const [first = '', ...rest] = name.split('/')
  if (rest.length === 0) return name.startsWith('sha256:') ? name : `docker.io/library/${name}`
  return /[.:]|^localhost$/.test(first) ? name : `docker.io/${name}`
}

async function startKubelet(site: Site, node: ClusterNode): Promise<void> {
  const own = folderOf(site, node)
  await start(site, node, 'kubelet', [
    site.artifacts.hyperkube,
    'kubelet',
    `--config=${join(own, 'kubelet.yaml')}`,
    `--kubeconfig=${pki(site, `${node}.kubeconfig`)}`,
    `--hostname-override=${node}`,
    `--node-ip=${addresses[node]}`,
    '--root-dir=/var/lib/kubelet',
    `--cert-dir=${join(own, 'certificates')}`,
  ])
  const healthy = untilOk(site, node, 'http://127.0.0.1:10248/healthz')
  await blaming(site.folder, `${node}-kubelet`, `start the kubelet on ${node}`, healthy)
}

async function start(site: Site, node: ClusterNode, program: string, argv: readonly string[]): Promise<void> {
  await startDaemon(site.folder, {
    part: `${node}-${program}`,
    cgroup: cgroupIn(site.cluster, node),
    argv: commandOnNode(site, node, argv),
    forks: true,
  })
}

function writeConfiguration(site: Site, node: ClusterNode): void {
  const folder = folderOf(site, node)
  const files = nodeFiles(node, cgroupIn(site.cluster, node), {
    folder,
    debian: site.artifacts.debian,
    caFile: pki(site, 'ca.crt'),
    proxyKubeconfig: pki(site, 'proxy.kubeconfig'),
  })
  for (const name of ['var-lib', 'var-log']) mkdirSync(join(folder, name), { recursive: true })
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, name)), { recursive: true })
    writeFileSync(join(folder, name), content)
  }
}

function folderOf({ folder }: Site, node: ClusterNode): string {
  return join(folder, node)
}

/**
 * Pid 1 of a node ($0 its name, $1 its folder): gives it its own /run, /var/lib and /var/log, and shows the kubelet
 * files of our own in place of the machine's settings, which so stay as they are. Then it lives as long as the node
 * and reaps what is left to it; its end is the end of every process and mount of the node.
 */
const initScript = `
hostname "$0"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lock
mount --bind "$1/var-lib" /var/lib
mount --bind "$1/var-log" /var/log
show() {
  [ -e "/proc/sys/$1" ] || return 0
  mkdir -p "/run/settings/$1"
  echo "$2" > "/run/settings/$1/value"
  mount --bind "/run/settings/$1/value" "/proc/sys/$1"
}
${Object.entries(machineSettings)
  .map(([name, value]) => `show ${name} ${value}`)
  .join('\n')}
: > "$1/mounted"
sleep infinity &
wait
`
