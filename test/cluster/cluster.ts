import { randomBytes } from 'node:crypto'
import { copyFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { inNamespace } from '../lab/network.ts'
import { labError } from '../lab/processes.ts'
import { type Output, type RunOptions, run } from '../lab/shell.ts'
import { build } from './build.ts'
import type { Log } from './cache.ts'
import { makeCgroup } from './cgroups.ts'
import { killApiServer, pki, type Site, startApiServer, startControlPlane } from './control-plane.ts'
import { addresses, type ClusterNode, cgroupIn, namespaceIn, nodes, type Place } from './layout.ts'
import { makeNetwork, setEdgeLink } from './network.ts'
import { commandOnNode, importImage, joinNode, restartKubelet, startNode } from './node.ts'
import { makePki } from './pki.ts'
import {
  clusterNames,
  createState,
  folderOf,
  leftovers,
  readState,
  removeCluster,
  type State,
} from './state.ts'

export interface ClusterOptions {
  /** Default: a name that is not taken. */
  name?: string
  /** Hears of every step; default: nobody does. */
  log?: Log
  /** Leaves it running when this process ends; otherwise the next `up` removes it then. */
  keep?: boolean
}

const kubectlDeadlineMs = 200_000

/** A running Kubernetes of two nodes, `cloud` and, behind a NAT, `edge`. */
export class Cluster {
  readonly name: string
  /** Everything it writes: `log/`, the nodes' folders, `pki/`. */
  readonly folder: string
  /** The administrator's. Its API server can be reached from inside the cluster's networks only: see `run`. */
  readonly kubeconfig: string
  readonly #site: Site

  private constructor({ name, artifacts }: State) {
    this.name = name
    this.folder = folderOf(name)
    this.kubeconfig = join(this.folder, 'kubeconfig')
    this.#site = { cluster: name, folder: this.folder, artifacts }
  }

  /** Builds what is missing (minutes, once a machine), removes leftovers, and resolves once both nodes are Ready. */
  static async up({ name, log = () => undefined, keep = false }: ClusterOptions = {}): Promise<Cluster> {
    requireRoot()
    const chosen = name ?? randomBytes(3).toString('hex')
    if (!/^[a-z0-9][a-z0-9-]{0,20}$/.test(chosen))
      throw labError(`Cannot make cluster "${chosen}": use up to 21 of a-z, 0-9 and -.`)
    const artifacts = await build(log)
    for (const left of leftovers()) {
      log(`removing cluster ${left}, whose owner has ended`)
      await removeCluster(left)
    }
    const cluster = new Cluster(createState(chosen, artifacts, keep))
    try {
      await cluster.#start(log)
      return cluster
    } catch (error) {
      await cluster.down()
      throw error
    }
  }

  /** A cluster that is up, whoever made it; the only one, unless named. */
  static open(name?: string): Cluster {
    const known = Cluster.list()
    const [only] = known
    if (name !== undefined) return new Cluster(readState(name))
    if (only !== undefined && known.length === 1) return new Cluster(readState(only))
    const which =
      only === undefined
        ? 'there is none; make one with "npm run cluster -- up"'
        : `choose one with --name: ${known.join(', ')}`
    throw labError(`Cannot tell which cluster: ${which}.`)
  }

  static list(): string[] {
    return clusterNames()
  }

  /** Takes down every cluster of this machine, also those that somebody uses. */
  static async downAll(): Promise<string[]> {
    const names = Cluster.list()
    for (const name of names) await Cluster.down(name)
    return names
  }

  /** Takes a cluster down by its name, whatever is left of it. */
  static async down(name: string): Promise<void> {
    requireRoot()
    await removeCluster(name)
  }

  async down(): Promise<void> {
    await Cluster.down(this.name)
  }

  kubectl(...args: string[]): Promise<Output> {
    return run(this.kubectlCommand(args), { timeoutMs: kubectlDeadlineMs })
  }

  /** As `kubectl`, with the text on stdin: `kubectlWith(manifest, 'apply', '-f', '-')`. */
  kubectlWith(input: string, ...args: string[]): Promise<Output> {
    return run(this.kubectlCommand(args), { input, timeoutMs: kubectlDeadlineMs })
  }

  /** As `kubectl`; resolves to what it prints, and an exit code other than 0 is an error. */
  async mustKubectl(...args: string[]): Promise<string> {
    return this.#explained(args, await this.kubectl(...args))
  }

  /** Applies Kubernetes objects: JSON or YAML text, or the objects themselves. */
  async apply(manifest: string | readonly object[]): Promise<string> {
    const text =
      typeof manifest === 'string'
        ? manifest
        : JSON.stringify({ apiVersion: 'v1', kind: 'List', items: manifest })
    const args = ['apply', '-f', '-']
    return this.#explained(args, await this.kubectlWith(text, ...args))
  }

  kubectlCommand(args: readonly string[]): string[] {
    return this.commandIn('cloud', [
      this.#site.artifacts.hyperkube,
      'kubectl',
      '--kubeconfig',
      this.kubeconfig,
      ...args,
    ])
  }

  /** Runs a program of the machine in the network of a place, to its end. */
  run(place: Place, argv: readonly string[], options: RunOptions = {}): Promise<Output> {
    return run(this.commandIn(place, argv), options)
  }

  commandIn(place: Place, argv: readonly string[]): string[] {
    return inNamespace(namespaceIn(this.name, place), argv)
  }

  /** Runs a program in all the namespaces of a node: its network, mounts and processes; `ctr` is on the PATH. */
  onNode(node: ClusterNode, argv: readonly string[], options: RunOptions = {}): Promise<Output> {
    return run(this.commandOnNode(node, argv), options)
  }

  commandOnNode(node: ClusterNode, argv: readonly string[]): string[] {
    return commandOnNode(this.#site, node, argv)
  }

  /** Makes the images of an archive (`docker save` or OCI) known to both nodes; nothing else can be pulled. */
  async loadImage(tarPath: string): Promise<void> {
    await Promise.all(nodes.map((node) => importImage(this.#site, node, tarPath)))
  }

  /** Kills it; etcd, the controllers and the nodes go on. */
  async killApiServer(): Promise<void> {
    await killApiServer(this.#site)
  }

  /** Starts it again with the same data; resolves once it is ready. */
  async startApiServer(): Promise<void> {
    await startApiServer(this.#site)
  }

  /** The node's pods go on; resolves once the new kubelet is healthy. */
  async restartKubelet(node: ClusterNode): Promise<void> {
    await restartKubelet(this.#site, node)
  }

  /** Cuts the edge off from everything; it is NotReady after some 12 s. */
  async cutEdge(): Promise<void> {
    await setEdgeLink(this.name, 'down')
  }

  async restoreEdge(): Promise<void> {
    await setEdgeLink(this.name, 'up')
  }

  nodeIP(node: ClusterNode): string {
    return addresses[node]
  }

  async #start(log: Log): Promise<void> {
    const site = this.#site
    log('certificates, network and cgroups')
    for (const part of ['control', ...nodes] as const) makeCgroup(cgroupIn(this.name, part))
    await Promise.all([makePki(join(this.folder, 'pki')), makeNetwork(this.name)])
    copyFileSync(pki(site, 'admin.kubeconfig'), this.kubeconfig)
    log('etcd, API server, controllers; containerd on both nodes')
    await Promise.all([startControlPlane(site), ...nodes.map((node) => startNode(site, node))])
    log('kubelet and kube-proxy on both nodes')
    await Promise.all(nodes.map((node) => joinNode(site, node)))
    log('both nodes Ready, service accounts at work')
    await Promise.all([this.#nodesReady(), this.#podsWelcome()])
    log('up')
  }

  /** Pods are refused until their namespace has both of these. */
  async #podsWelcome(): Promise<void> {
    const made = ['get', '--namespace=default', 'serviceaccount/default', 'configmap/kube-root-ca.crt']
    for (const until = Date.now() + 60_000; Date.now() < until; await delay(200))
      if ((await this.kubectl(...made)).code === 0) return
    await this.mustKubectl(...made)
  }

  async #nodesReady(): Promise<void> {
    const names = nodes.map((node) => `node/${node}`)
    await this.mustKubectl('wait', '--for=create', '--timeout=60s', ...names)
    await this.mustKubectl('wait', '--for=condition=Ready', '--timeout=60s', ...names)
  }

  #explained(args: readonly string[], { code, stdout, stderr }: Output): string {
    if (code === 0) return stdout
    const reason = (stderr || stdout).trim()
    throw labError(`Cannot do "kubectl ${args.join(' ')}": ${reason}. The logs are in ${this.folder}/log.`)
  }
}

function requireRoot(): void {
  if (process.getuid?.() === 0) return
  throw labError('Cannot make a cluster: root is needed. Run it with sudo.')
}
